"""Folders with low-rank weights: read back bit for bit, never loaded as something else."""

import copy
import io
import json
import pickle
import tempfile

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GPT2LMHeadModel,
    ViTForImageClassification,
)

import orthotrain  # noqa: E402
from integrations.test_transformers import Examples, equal, gpt, trainer, vit  # noqa: E402
from orthotrain.errors import CheckpointError, ConfigError  # noqa: E402
from orthotrain.integrations.transformers import from_pretrained, save_pretrained  # noqa: E402

CLASSES = {gpt: GPT2LMHeadModel, vit: ViTForImageClassification}
makes = pytest.mark.parametrize("make", CLASSES)


def low_rank(make, bases="trained"):
    return orthotrain.compress(make(), stored_budget=0.5, bases=bases).eval()


def output(model, make):
    first = Examples(make)[0]
    first = {
        k: v[None] if isinstance(v, torch.Tensor) else torch.tensor([v]) for k, v in first.items()
    }
    return model(**first).logits


@makes
@pytest.mark.parametrize("bases", ["trained", "frozen"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, make, bases, dense):
    model = low_rank(make, bases)
    save_pretrained(model, tmp_path / "new" / "folder", dense=dense)
    loaded = from_pretrained(CLASSES[make], tmp_path / "new" / "folder")
    assert equal(model, loaded)
    assert not loaded.training
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    ranks = {layer.rank for layer in model.compression.layers if layer.rank}
    assert set(config["orthotrain"]["ranks"].values()) == ranks


@makes
def test_plain_loading_is_refused_or_gets_the_dense_weights(tmp_path, make):
    model = low_rank(make)
    save_pretrained(model, tmp_path / "low")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        CLASSES[make].from_pretrained(tmp_path / "low")
    save_pretrained(model, tmp_path / "dense", dense=True)
    plain = CLASSES[make].from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(output(plain, make), output(model, make), rtol=1e-4, atol=1e-5)


@makes
def test_a_checkpoint_of_a_trainer_is_refused_by_plain_loading_and_read_by_ours(tmp_path, make):
    made, _ = trainer(tmp_path, make)
    made.train()
    early, late = tmp_path / "checkpoint-4", tmp_path / "checkpoint-12"
    dense = CLASSES[make].from_pretrained(early)
    assert equal(from_pretrained(CLASSES[make], early), dense)
    with pytest.raises(OSError, match="needs_orthotrain"):
        CLASSES[make].from_pretrained(late)
    assert equal(from_pretrained(CLASSES[make], late), made.model)
    assert not equal(from_pretrained(CLASSES[make], early), made.model)


def attached(make):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = orthotrain.attach(model, optimizer, orthotrain.AdaptiveLowRank(), total_steps=4)
    for _ in range(4):
        optimizer.zero_grad()
        output(model, make).square().mean().backward()
        optimizer.step()
    handle.detach()
    return model


def restored(make):
    """As a script of an evaluation does it."""
    state = low_rank(make).state_dict()
    model = orthotrain.restore_structure(make(), state)
    model.load_state_dict(state)
    return model


def followed(make):
    model = orthotrain.follow(make())
    model.load_state_dict(low_rank(make).state_dict())
    return model


class Holder(torch.nn.Module):
    """A module of the user's own around the network."""

    def __init__(self, net):
        super().__init__()
        self.net = net


def one_of_several_sizes(make):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train_on(branch):
        for _ in range(2):
            branch.optimizer.zero_grad()
            output(branch.model, make).square().mean().backward()
            branch.optimizer.step()

    (branch,) = orthotrain.sizes(
        model, optimizer, [0.5], train_on=train_on, count_operations=False
    ).branches
    return branch.model.eval()


WAYS = {
    "sizes": one_of_several_sizes,
    "compress": low_rank,
    "attach": attached,
    "restore_structure": restored,
    "follow": followed,
    "a copy": lambda make: copy.deepcopy(low_rank(make)),
    "a pickle": lambda make: pickle.loads(pickle.dumps(low_rank(make))),
    "inside another module": lambda make: (
        orthotrain.compress(Holder(make()), stored_budget=0.5).net
    ),
    "read back": lambda make: there_and_back(low_rank(make)),
}


def there_and_back(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return from_pretrained(type(model), folder)


@makes
@pytest.mark.parametrize("way", WAYS)
def test_the_models_own_save_is_refused_by_plain_loading_and_read_by_ours(tmp_path, make, way):
    model = WAYS[way](make)
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="needs_orthotrain"):
        CLASSES[make].from_pretrained(tmp_path)
    loaded = from_pretrained(CLASSES[make], tmp_path)
    assert equal(model, loaded)
    # Dense again, in the same folder: nothing is left of it.
    orthotrain.to_dense(model).save_pretrained(tmp_path)
    plain = CLASSES[make].from_pretrained(tmp_path)
    assert torch.equal(output(plain, make), output(model.eval(), make))
    assert "orthotrain" not in (tmp_path / "config.json").read_text()
    assert equal(from_pretrained(CLASSES[make], tmp_path), model)


def test_a_dense_model_that_may_become_low_rank_is_saved_as_ever(tmp_path):
    model = orthotrain.follow(gpt())
    model.save_pretrained(tmp_path)
    assert "orthotrain" not in (tmp_path / "config.json").read_text()
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path), model)


def test_a_large_model_is_in_several_files(tmp_path):
    model = low_rank(gpt)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with pytest.raises(OSError, match="needs_orthotrain"):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    assert equal(model, from_pretrained(GPT2LMHeadModel, tmp_path))


def test_a_process_that_does_not_write_marks_nothing(tmp_path):
    low_rank(gpt).save_pretrained(tmp_path, is_main_process=False)
    low_rank(gpt).save_pretrained(tmp_path, False)  # by position
    assert not list(tmp_path.iterdir())


def test_a_model_with_its_own_way_to_be_saved_pickles_without_the_library():
    model = low_rank(gpt)
    assert "save_pretrained" in vars(model)
    file = io.BytesIO()
    torch.save(orthotrain.to_dense(model), file)
    assert b"orthotrain." not in file.getvalue()
    assert "save_pretrained" not in vars(model)


def test_a_model_that_no_layer_of_became_two_is_saved_as_ever(tmp_path):
    model = orthotrain.to_factored(gpt())
    model.save_pretrained(tmp_path)
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path), model)


@pytest.mark.bad_input
def test_a_low_rank_model_is_not_pushed_before_it_is_marked(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.push_to_hub"):
        low_rank(gpt).save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())


def test_recurrent_layers_in_factors_are_marked_like_others(tmp_path):
    model = gpt()
    model.tagger = torch.nn.LSTM(16, 16)
    orthotrain.compress(model, energy=0.5, only=["tagger"], also=["lstm"])
    with pytest.raises(ConfigError, match="push"):
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True)
    model.save_pretrained(tmp_path / "saved")
    ranks = json.loads((tmp_path / "saved/config.json").read_text())["orthotrain"]["ranks"]
    assert ranks.keys() == {"tagger.weight_ih_l0", "tagger.weight_hh_l0"}


def test_an_auto_class_and_changed_settings(tmp_path):
    model = low_rank(gpt)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path, resid_pdrop=0.25)
    assert type(loaded) is GPT2LMHeadModel
    assert loaded.config.resid_pdrop == 0.25
    assert equal(model, loaded)


DAMAGE = {
    "config.json": ["", "{", "[]", "null", b"\xff\xfe", '{"orthotrain": 3}',
                    '{"model_type": "gpt2", "orthotrain": {"weights": "other", "ranks": {}}}',
                    '{"model_type": "gpt2", "orthotrain": {"weights": "orthotrain.safetensors"}}',
                    '{"model_type": "gpt2", "orthotrain": {"weights": "model.safetensors", '
                    '"ranks": {}, "two_layers": {"lm_head": "9"}}}',
                    '{"model_type": "no such model"}', '{"vocab_size": 3}',
                    '{"model_type": "gpt2", "n_embd": "wide"}'],
    "generation_config.json": ["", "{"],
    "model.safetensors": ["", "{", b"\xff" * 40],
}  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize("make_it", [low_rank, lambda make: make()], ids=["low-rank", "dense"])
@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_file_is_told_with_what_to_try(tmp_path, make_it, file):
    model = make_it(gpt)
    if file.startswith("generation") and not hasattr(model, "compression"):
        return  # Transformers itself loads a dense model without it
    model.save_pretrained(tmp_path)
    for content in DAMAGE[file]:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(CheckpointError, match=rf"cannot read .*{file.split('.')[0]}") as caught:
            from_pretrained(GPT2LMHeadModel, tmp_path)
        assert "from another checkpoint of this model, or save the model again" in str(caught.value)


@pytest.mark.bad_input
def test_what_cannot_be_written_or_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match="needs a model of Transformers"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    gpt().save_pretrained(tmp_path / "old")
    with pytest.raises(ConfigError, match="without other weights"):
        save_pretrained(low_rank(gpt), tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="which has neither"):
        from_pretrained(GPT2LMHeadModel, tmp_path / "old")
    save_pretrained(low_rank(gpt), tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"that .*orthotrain\.safetensors was saved"):
        from_pretrained(GPT2LMHeadModel, tmp_path / "new", n_embd=16)


@makes
@pytest.mark.parametrize("bases", ["trained", "frozen"])
@pytest.mark.parametrize("save", [save_pretrained, lambda m, folder: m.save_pretrained(folder)],
                         ids=["ours", "the model's own"])  # fmt: skip
def test_the_dtype_and_what_generation_needs_come_back(tmp_path, make, bases, save):
    model = low_rank(make, bases).to(torch.bfloat16)
    if make is gpt:
        model.generation_config.max_new_tokens = 77
    save(model, tmp_path)
    loaded = from_pretrained(CLASSES[make], tmp_path)
    assert loaded.dtype == loaded.config.dtype == torch.bfloat16
    types = [{n: t.dtype for n, t in each.state_dict().items()} for each in (model, loaded)]
    assert types[0] == types[1]
    assert equal(model, loaded)
    if make is gpt:
        assert loaded.generation_config.max_new_tokens == 77
        assert torch.equal(output(loaded, make), output(model, make))
    for asked in (torch.float32, "float32"):
        single = from_pretrained(CLASSES[make], tmp_path, dtype=asked)
        assert single.dtype == single.config.dtype == torch.float32
        assert equal(single, model.to(torch.float32))


def test_a_dense_folder_is_read_in_the_dtype_that_is_asked_for(tmp_path):
    gpt().save_pretrained(tmp_path)
    assert from_pretrained(GPT2LMHeadModel, tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert from_pretrained(GPT2LMHeadModel, tmp_path).dtype == torch.float32


@pytest.mark.bad_input
@pytest.mark.parametrize("save", [save_pretrained, lambda m, folder: m.save_pretrained(folder)],
                         ids=["ours", "the model's own"])  # fmt: skip
@pytest.mark.parametrize("make_it", [low_rank, lambda make: make()], ids=["low-rank", "dense"])
def test_another_class_no_class_and_no_folder_are_told(tmp_path, save, make_it):
    save(make_it(gpt), tmp_path)
    for other in (ViTForImageClassification, AutoModelForImageClassification):
        with pytest.raises(CheckpointError, match=r"GPT2.*take the class that was saved"):
            from_pretrained(other, tmp_path)
    for no_class in ("GPT2LMHeadModel", torch.nn.Linear, gpt()):
        with pytest.raises(ConfigError, match="needs a class of Transformers"):
            from_pretrained(no_class, tmp_path)
    with pytest.raises(CheckpointError, match=r"folder with config\.json"):
        from_pretrained(GPT2LMHeadModel, tmp_path / "missing")
    with pytest.raises(ConfigError, match="needs a dtype such as"):
        from_pretrained(GPT2LMHeadModel, tmp_path, dtype="bf16")


def test_layers_put_in_by_hand_are_marked_once_the_model_follows(tmp_path):
    model = vit()
    layer = model.vit.layers[0].mlp
    layer.fc1 = orthotrain.layers.LowRankLinear.from_linear(layer.fc1, rank=4)
    orthotrain.follow(model).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="needs_orthotrain"):
        ViTForImageClassification.from_pretrained(tmp_path)
    assert equal(from_pretrained(ViTForImageClassification, tmp_path), model)
