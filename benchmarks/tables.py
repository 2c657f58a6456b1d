"""Write the tables of the manual anew from the results that are kept; nothing is measured.

    python benchmarks/tables.py

Each benchmark writes its own table after measuring; this command is for a table whose form has changed. The tables of
`labels/pool.py`, `labels/pool_advice.py` and `gpu.py` are written by these.
"""

from batchbald import batch_information, joint_entropy_growth, joint_entropy_report, joint_entropy_seeds
from common import RESULTS, Table
from inference import frozen, mc_dropout, transformer
from labels import family, feature_recipe, learning_curves, page, paper_report, posteriors, stopping_rules, text
from reliability import busy_neighbour, killed_runs, ranks

TABLES: tuple[Table, ...] = (
    *joint_entropy_report.TABLES,
    joint_entropy_growth.TABLE,
    joint_entropy_seeds.TABLE,
    batch_information.TABLE,
    mc_dropout.TABLE,
    transformer.TABLE,
    frozen.TABLE,
    learning_curves.TABLE,
    posteriors.TABLE,
    *paper_report.MANUAL_TABLES,
    *feature_recipe.TABLES,
    stopping_rules.TABLE,
    text.TABLE,
    family.TABLE,
    page.TABLE,
    busy_neighbour.TABLE,
    ranks.TABLE,
    killed_runs.TABLE,
)

if __name__ == "__main__":
    for table in TABLES:
        table.write(RESULTS)
