"""Models with attention dropout, put to the promises of every sampled model: torch's own and those of transformers."""

import math
import weakref
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from al_lightning.posterior import MCDropout
from al_lightning.posterior.dropout import function_mode, vmapped
from al_lightning.posterior.dropout.masks import attention_mask, dropout_mask

K, SEED, ROWS = 3, 1, 6
POSTERIOR = MCDropout(predict=lambda module, batch: module(**batch).logits)


class Text(nn.Module):
    """Classifier of texts with an encoder, and an own decoder of one query with cross-attention if asked for."""

    def __init__(self, p, *, batch_first=True, norm_first=False, decoder=False, exact=()):
        super().__init__()
        self.batch_first, self.embedding = batch_first, nn.Embedding(50, 16)
        settings = {"batch_first": batch_first, "norm_first": norm_first}
        layers = [nn.TransformerEncoderLayer(16, 2, 32, p_of, **settings) for p_of in (*exact, p, p)]
        self.layers = nn.TransformerEncoder(layers[0], len(layers), enable_nested_tensor=batch_first and not norm_first)
        self.layers.layers = nn.ModuleList(layers)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, p, **settings) if decoder else None
        self.classifier = nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        padding, hidden = attention_mask == 0, self.embedding(input_ids)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        encoded = self.layers(hidden, src_key_padding_mask=padding)
        if self.decoder is not None:
            memory = {"memory_key_padding_mask": padding, "tgt_key_padding_mask": padding}
            causal = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1]) < 0
            encoded = self.decoder(hidden, encoded, tgt_mask=causal, tgt_is_causal=True, **memory)
        first = encoded[:, 0] if self.batch_first else encoded[0]
        return SimpleNamespace(logits=self.classifier(first))


class Attending(nn.Module):
    """Classifier of texts with `nn.MultiheadAttention` alone."""

    def __init__(self, p, *, need_weights=True, is_causal=False, **settings):
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(50, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 2, dropout=p, batch_first=True, **settings)
        self.need_weights, self.is_causal = need_weights, is_causal

    def forward(self, input_ids, attention_mask):
        x, length = self.embedding(input_ids), input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1) if self.is_causal else None
        attended, _ = self.attention(
            x, x, x, key_padding_mask=attention_mask == 0, attn_mask=mask, need_weights=self.need_weights
        )
        hidden = (attended * attention_mask.unsqueeze(2)).sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=self.classifier(hidden))


def transformer(name, config, implementation, **settings):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{config}Config")(num_labels=3, pad_token_id=0, **settings)
    return getattr(transformers, name)._from_config(made, attn_implementation=implementation)


def bert(p, implementation):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"attention_probs_dropout_prob": p, "hidden_dropout_prob": p}
    return transformer("BertForSequenceClassification", "Bert", implementation, vocab_size=50, **sizes, **dropout)


def gpt2(p, implementation):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    dropout = {"attn_pdrop": p, "resid_pdrop": p, "embd_pdrop": p}
    return transformer("GPT2ForSequenceClassification", "GPT2", implementation, vocab_size=50, **sizes, **dropout)


def vit(p, implementation):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"attention_probs_dropout_prob": p, "hidden_dropout_prob": p, "image_size": 8, "patch_size": 4}
    return transformer("ViTForImageClassification", "ViT", implementation, **sizes, **dropout)


def convnext(p):
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}
    model = transformer("ConvNextForImageClassification", "ConvNext", "eager", **sizes)
    model.classifier = nn.Sequential(nn.Dropout(p), model.classifier)
    return model


OF_TORCH = {
    "encoder": Text,
    "encoder, norm first": lambda p: Text(p, norm_first=True),
    "encoder, time first": lambda p: Text(p, batch_first=False),
    "encoder, time and norm first": lambda p: Text(p, batch_first=False, norm_first=True),
    "encoder, mostly exact": lambda p: Text(p, exact=(0.0,) * 9),
    "decoder": lambda p: Text(p, decoder=True),
    "decoder, time first": lambda p: Text(p, decoder=True, batch_first=False),
    "attention": Attending,
    "attention, no weights": lambda p: Attending(p, need_weights=False),
    "attention, masked": lambda p: Attending(p, is_causal=True),
    "attention, masked, no weights": lambda p: Attending(p, is_causal=True, need_weights=False),
    "attention, added keys": lambda p: Attending(p, add_bias_kv=True, add_zero_attn=True),
    "attention, added keys, no weights": lambda p: Attending(p, add_bias_kv=True, need_weights=False),
}
OF_TRANSFORMERS = {
    f"{name}, {implementation}": lambda p, build=build, implementation=implementation: build(p, implementation)
    for name, build in {"BERT": bert, "GPT-2": gpt2, "ViT": vit}.items()
    for implementation in ("eager", "sdpa")
}
PLAIN = {"encoder", "decoder, time first", "attention, masked, no weights"}
MODELS = [
    pytest.param(build, id=name, marks=[] if name in PLAIN else pytest.mark.slow)
    for name, build in (OF_TORCH | OF_TRANSFORMERS | {"ConvNeXt": convnext}).items()
]


def built(build, p=0.5):
    """Return a model with weights that are large enough for its classes to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(p)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def points(model, longest=7):
    """Return texts of three lengths, padded to seven words, or images if that is what a model takes."""
    generator = torch.Generator().manual_seed(0)
    if hasattr(getattr(model, "config", None), "image_size") or hasattr(model, "convnext"):
        return {"pixel_values": torch.randn(ROWS, 3, 8, 8, generator=generator)}
    is_word = (torch.arange(longest) < torch.tensor([longest - row % 3 for row in range(ROWS)]).unsqueeze(1)).long()
    return {
        "input_ids": torch.randint(1, 50, (ROWS, longest), generator=generator) * is_word,
        "attention_mask": is_word,
    }


def padded(batch, length):
    """Return the texts with more padding; images as they are."""
    return {
        name: functional.pad(tensor, (0, length - tensor.shape[1])) if tensor.dim() == 2 else tensor
        for name, tensor in batch.items()
    }


def rows(batch, which):
    return {name: tensor[which] for name, tensor in batch.items()}


class InTraining:
    """Torch's dropout functions with the masks of sample k, for a model that runs in training mode as a whole."""

    def __init__(self, model, k):
        self.model, self.k, self.modules = model, k, dict(model.named_modules())
        self.running, self.calls = [], Counter()

    @contextmanager
    def active(self, monkeypatch):
        def leave(*_):
            self.running.pop()

        hooks = []
        for name, module in self.modules.items():
            hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name)),
                module.register_forward_hook(leave),
            ]
        with monkeypatch.context() as patch:
            patch.setattr(functional, "dropout", self.dropout)
            patch.setattr(functional, "scaled_dot_product_attention", self.attention)
            self.model.train()
            yield
            self.model.eval()
        for hook in hooks:
            hook.remove()

    def name(self):
        layer = self.running[-1]
        self.calls[layer] += 1
        return {"seed": SEED, "layer": layer, "call": self.calls[layer] - 1, "k": self.k}

    def factors(self, weights, p):
        module = self.modules[self.running[-1]]
        added = (getattr(module, "bias_k", None) is not None) + getattr(module, "add_zero_attn", False)
        keep = attention_mask(weights.shape[1:], p, **self.name())
        return torch.cat([keep[..., added:], keep[..., :added]], dim=2) / (1 - p)

    def dropout(self, x, p=0.5, training=True, inplace=False):
        assert training
        module = self.modules[self.running[-1]]
        if isinstance(module, nn.MultiheadAttention):
            weights = x.unflatten(0, (-1, module.num_heads))
            return (weights * self.factors(weights, p)).flatten(0, 1)
        if not isinstance(module, nn.Dropout):
            return x * self.factors(x, p)
        is_time_first = x.dim() == 3 and not getattr(self.model, "batch_first", True)
        if p == 0:
            return x
        keep = dropout_mask((x.shape[0], *x.shape[2:]) if is_time_first else x.shape[1:], p, **self.name())
        return x * (keep.unsqueeze(1) if is_time_first else keep) / (1 - p)

    def attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            added = attn_mask if attn_mask.is_floating_point() else torch.zeros(attn_mask.shape)
            scores = scores + (added if added is attn_mask else added.masked_fill(~attn_mask, -math.inf))
        weights = scores.softmax(dim=-1).nan_to_num(0.0)
        return weights * self.factors(weights, dropout_p) @ value if dropout_p else weights @ value


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("build", MODELS)
def test_sample_k_is_the_model_in_training_mode_with_the_masks_of_k(build, p, monkeypatch):
    model = built(build, p)
    batch = points(model)
    expected_K_B_C = []
    for k in range(K):
        with torch.no_grad(), InTraining(model, k).active(monkeypatch):
            expected_K_B_C.append(model(**batch).logits.log_softmax(dim=1))
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        log_probs_B_K_C = predict(batch)
    torch.testing.assert_close(log_probs_B_K_C, torch.stack(expected_K_B_C, dim=1), rtol=1e-4, atol=1e-5)
    assert (log_probs_B_K_C[:, 0] - log_probs_B_K_C[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("build", MODELS)
def test_the_networks_are_the_same_for_any_batch_size_order_and_length(build):
    model = built(build)
    batch = points(model)
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        expected_B_K_C = predict(batch)
        path = predict.path
        for others in (padded(batch, 70), padded(batch, 40), rows(padded(batch, 90), slice(2))):
            log_probs_b_K_C = predict(rows(others, slice(None, None)))
            torch.testing.assert_close(log_probs_b_K_C, expected_B_K_C[: len(log_probs_b_K_C)], rtol=0, atol=1e-5)
        assert predict.path == path
    order = torch.tensor([4, 1, 0])
    with POSTERIOR.sample(model, K, seed=SEED) as predict:  # the longest comes first here
        log_probs_b_K_C = predict(rows(padded(batch, 33), order))
        torch.testing.assert_close(log_probs_b_K_C, expected_B_K_C[order], rtol=0, atol=1e-5)
        torch.testing.assert_close(predict(batch), expected_B_K_C, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", MODELS)
def test_the_model_is_previewed_and_left_as_it_was(build):
    model = built(build)
    model.train()
    batch = points(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [(set(vars(module)), module.training, len(module._forward_hooks)) for module in model.modules()]
    POSTERIOR.preview(model, batch, smaller=rows(padded(batch, 9), slice(3)))
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        predict(batch)
    assert kept == [(set(vars(module)), module.training, len(module._forward_hooks)) for module in model.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


@pytest.mark.parametrize("build", [bert, gpt2, vit])
def test_eager_and_fused_attention_are_the_same_networks(build):
    log_probs = []
    for implementation in ("eager", "sdpa"):
        model = built(lambda p, implementation=implementation: build(p, implementation))
        with POSTERIOR.sample(model, K, seed=SEED) as predict:
            log_probs.append(predict(points(model)))
        assert predict.sampled.startswith("attention in 2 layers, ")
    torch.testing.assert_close(*log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Text, "attention in 2 layers, 6 of nn.Dropout (masks 1)"),
        (lambda p: Text(p, decoder=True), "attention in 4 layers, 10 of nn.Dropout (masks 1)"),
        (Attending, "attention in 1 layer (masks 1)"),
        (lambda p: bert(p, "sdpa"), "attention in 2 layers, 6 of nn.Dropout (masks 1)"),
        (convnext, "1 of nn.Dropout (masks 1)"),
    ],
)
def test_a_line_says_which_dropouts_are_sampled(build, words):
    model = built(build)
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        assert predict.sampled is None
        predict(points(model))
        assert predict.sampled == words


@pytest.mark.parametrize("build", MODELS)
def test_samples_computed_at_once_are_those_of_the_loop(build, monkeypatch):
    model, log_probs = built(build), {}
    monkeypatch.setattr(vmapped, "_LEAST_SHARED", 0.0)  # of ConvNeXt, which has no attention
    for path in ("vmap", "loop"):
        if path == "loop":
            monkeypatch.setattr(vmapped.Vectorised, "first_and_last", None)
        with POSTERIOR.sample(model, K, seed=SEED) as predict:
            log_probs[path] = predict(points(model)), predict(padded(points(model), 40))
            assert predict.path == path, predict.reason
    for looped, at_once in zip(*log_probs.values(), strict=True):
        torch.testing.assert_close(at_once, looped, rtol=0, atol=1e-5)


def test_samples_of_attention_are_computed_at_once_though_they_share_little():
    model = built(Text)
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        predict(points(model))
        assert (predict.path, predict.reason) == ("vmap", "")


@pytest.mark.slow
def test_samples_of_a_mostly_exact_encoder_are_computed_at_once_for_texts_of_any_length():
    model = built(OF_TORCH["encoder, mostly exact"])
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        for length in (7, 40, 8):
            predict(padded(points(model), length))
            assert (predict.path, predict.reason) == ("vmap", "")


class Written(nn.Module):
    """Classifier of texts with attention written by hand, or, as the error says instead, by torch's function."""

    def __init__(self, p, *, by_torch=False, heads=2, is_function=False):
        super().__init__()
        self.embedding, self.qkv, self.classifier = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 3)
        self.drop, self.by_torch, self.heads, self.is_function = nn.Dropout(p), by_torch, heads, is_function

    def forward(self, input_ids, attention_mask):
        q, k, v = self.qkv(self.embedding(input_ids)).chunk(3, dim=-1)
        sees = attention_mask.bool()[:, None]
        if self.heads:
            q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
            sees = sees[:, None]
        if self.by_torch:
            p = self.drop.p if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(q, k, v, sees, dropout_p=p)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = scores.masked_fill(~sees, -math.inf).softmax(dim=-1)
            drop = functional.dropout(weights, self.drop.p, self.training) if self.is_function else self.drop(weights)
            mixed = drop @ v
        first = mixed[:, :, 0].flatten(1) if self.heads else mixed[:, 0]
        return SimpleNamespace(logits=self.classifier(first))


@pytest.mark.parametrize("settings", [{}, {"heads": 0}, {"is_function": True}])
def test_attention_written_by_hand_has_the_masks_of_its_one_length(settings):
    model = built(lambda p: Written(p, **settings))
    batch = points(model)
    layer, shape = ("" if settings.get("is_function") else "drop"), ((7, 7) if "heads" in settings else (2, 7, 7))
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        log_probs_B_K_C = predict(batch)
    for k in range(K):
        keep = dropout_mask(shape, 0.5, seed=SEED, layer=layer, call=0, k=k)
        masks = [lambda weights, *_, keep=keep: weights * keep / 0.5]
        model.drop.forward = masks[0]
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(functional, "dropout", masks[0])
            expected_B_C = model(**batch).logits.log_softmax(dim=1)
        del model.drop.forward
        torch.testing.assert_close(log_probs_B_K_C[:, k], expected_B_C, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [5, 9])
@pytest.mark.parametrize("settings", [{}, {"heads": 0}, {"is_function": True}])
def test_attention_written_by_hand_is_refused_before_the_training_where_texts_have_two_lengths(settings, length):
    model = built(lambda p: Written(p, **settings))
    batch = points(model)
    others = {name: tensor[:2, :length] for name, tensor in padded(batch, 9).items()}
    POSTERIOR.preview(model, batch, smaller=rows(batch, slice(2)))
    with pytest.raises(
        ValueError, match=r"weights of attention.*scaled_dot_product_attention\(q, k, v, dropout_p=p if"
    ):
        POSTERIOR.preview(model, batch, smaller=others)


def test_attention_that_the_error_names_instead_serves_texts_of_two_lengths():
    model = built(lambda p: Written(p, by_torch=True))
    batch = points(model)
    POSTERIOR.preview(model, batch, smaller=rows(padded(batch, 9), slice(2)))
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        expected_B_K_C = predict(batch)
        torch.testing.assert_close(predict(padded(batch, 9)), expected_B_K_C, rtol=0, atol=1e-5)
    assert predict.sampled == "attention in 1 layer (masks 1)"


class Alive(TorchDispatchMode):
    """Bytes of masks of attention that are alive at once, at most."""

    def __init__(self, length):
        super().__init__()
        self.length, self.found, self.most = length, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_mask = isinstance(result, torch.Tensor) and result.dtype == torch.bool
        if is_mask and result.shape[-2:] == (self.length, self.length):
            storage = result.untyped_storage()
            self.found[storage.data_ptr()] = weakref.ref(result), storage.nbytes()
        self.found = {pointer: one for pointer, one in self.found.items() if one[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self.found.values()))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_masks_of_a_long_text_are_never_held_for_all_samples_at_once(path, monkeypatch):
    length, num_samples = 48, 40
    all_masks = 2 * num_samples * 2 * length**2  # of two layers and two heads
    monkeypatch.setattr(vmapped, "_WORKING_SET_CPU", 2**15)
    if path == "loop":
        monkeypatch.setattr(vmapped.Vectorised, "first_and_last", None)
    model, most = built(Text), {}
    batch = rows(points(model, length), slice(2))
    for budget in (2**30, 2**16):
        monkeypatch.setattr(function_mode, "MOST_KEPT", budget)
        monkeypatch.setattr(vmapped, "_MOST_FACTORS", budget)
        with Alive(length) as alive, POSTERIOR.sample(model, num_samples, seed=SEED) as predict:
            log_probs_B_K_C = predict(batch)
            assert predict.path == path
        most[budget] = alive.most, log_probs_B_K_C
    (all_at_once, kept_B_K_C), (some, computed_B_K_C) = most.values()
    assert torch.equal(computed_B_K_C, kept_B_K_C)
    assert some < all_masks / 4 < all_masks <= all_at_once


@pytest.mark.parametrize("build", [Text, Attending, lambda p: gpt2(p, "sdpa"), lambda p: bert(p, "eager")])
def test_texts_padded_on_the_left_are_refused_before_the_training(build):
    model = built(build)
    batch = {name: tensor.flip(1) for name, tensor in points(model).items()}
    with pytest.raises(ValueError, match=r"begins with padding.*Pad on the right"):
        POSTERIOR.preview(model, batch)
    full = {"input_ids": torch.ones(ROWS, 7, dtype=torch.long), "attention_mask": torch.ones(ROWS, 7, dtype=torch.long)}
    with POSTERIOR.sample(model, K, seed=SEED) as predict:
        full["input_ids"][:, 3] = torch.arange(ROWS)
        predict(full)
        with pytest.raises(ValueError, match=r"begins with padding.*Pad on the right"):
            predict(batch)


def test_padding_on_the_left_is_of_no_matter_where_no_mask_has_positions():
    class Headed(Text):
        def __init__(self, p):
            super().__init__(0.0)
            self.drop = nn.Dropout(p)

        def forward(self, input_ids, attention_mask):
            logits = super().forward(input_ids, attention_mask.flip(1)).logits
            return SimpleNamespace(logits=self.drop(logits))

    model = built(Headed)
    POSTERIOR.preview(model, {name: tensor.flip(1) for name, tensor in points(model).items()})


def test_flash_attention_is_refused_by_name():
    model = built(lambda p: bert(p, "sdpa"))
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation = "flash_attention_2"  # its own check asks for a GPU
    with pytest.raises(ValueError, match=r"attention by flash_attention_2 in the model itself.*'sdpa'"):
        POSTERIOR.preview(model, points(model))
