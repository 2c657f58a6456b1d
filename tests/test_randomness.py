from al_lightning.randomness import derived_seed


def test_a_seed_of_its_own_for_every_seed_round_and_purpose():
    seeds = [derived_seed(seed, index, name) for seed in (0, 1) for index in (0, 1) for name in ("fit", "posterior")]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
