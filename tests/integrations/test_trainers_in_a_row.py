"""One Trainer after another on the same model, or on a checkpoint of another model."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers import TrainerCallback  # noqa: E402

from integrations.test_transformers import STEPS, gpt, trainer, vit  # noqa: E402
from orthotrain.errors import CheckpointError, ConfigError  # noqa: E402


class Broken(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("broken", [False, True], ids=["to its end", "broken off"])
def test_a_model_is_trained_by_one_trainer_after_another(tmp_path, broken):
    """As in a cell of a notebook that is run again."""
    model = gpt()
    first, earlier = trainer(tmp_path, model=model, callbacks=[Broken()] if broken else ())
    if broken:
        with pytest.raises(KeyboardInterrupt):
            first.train()
    else:
        first.train()
    second, callback = trainer(tmp_path, model=model)
    second.train()
    assert not earlier.handle.attached
    assert callback.handle.run.step == STEPS
    assert callback.handle.summary().total.stored < callback.handle.summary().total.dense


class Nested(TrainerCallback):
    """Trains the same model, or a copy of it, in the midst of a step."""

    def __init__(self, folder, copied):
        self.folder, self.copied, self.done = folder, copied, 0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            inner, _ = trainer(self.folder, model=copy.deepcopy(model) if self.copied else model)
            inner.train()
            self.done = inner.state.global_step


@pytest.mark.bad_input
def test_a_trainer_inside_another_one_of_the_same_model_is_refused(tmp_path):
    inside = Nested(tmp_path / "inside", copied=False)
    outer, callback = trainer(tmp_path, callbacks=[inside])
    with pytest.raises(
        ConfigError, match=r"another Trainer is training this model .*copy\.deepcopy"
    ):
        outer.train()
    assert callback.handle.attached  # of the outer one, which was not taken over
    assert inside.done == 0


def test_a_trainer_inside_another_one_may_train_a_copy(tmp_path):
    inside = Nested(tmp_path / "inside", copied=True)
    outer, callback = trainer(tmp_path, callbacks=[inside])
    outer.train()
    assert inside.done == callback.handle.run.step == STEPS
    assert callback.handle.summary().total.stored < callback.handle.summary().total.dense


def deeper():
    config = gpt().config
    config.n_layer = 2
    return type(gpt())(config)


OTHERS = {
    "another architecture": (
        vit,
        gpt,
        r"GPT2LMHeadModel.* holds another ViTForImage.*it lacks .*has",
    ),
    "the other way round": (
        gpt,
        vit,
        r"ViTForImage.* holds another GPT2LMHeadModel.*it lacks .*has",
    ),
    "more layers": (deeper, gpt, r"it has transformer\.h\.1\..* and \d+ more"),
    "fewer layers": (gpt, deeper, r"it lacks transformer\.h\.1\..* and \d+ more"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_changed(tmp_path, case):
    there, here, said = OTHERS[case]
    first, _ = trainer(tmp_path, vit if there is vit else gpt, model=there())
    first.train()
    for at in (4, 12):  # before and after the cut
        model = here()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        made, _ = trainer(tmp_path, vit if here is vit else gpt, model=model)
        with pytest.raises(CheckpointError, match=rf"{said}.*Nothing was changed"):
            made.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.bad_input
def test_damaged_weights_of_a_checkpoint_are_told(tmp_path):
    first, _ = trainer(tmp_path)
    first.train()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"\xff" * 40)
    made, _ = trainer(tmp_path)
    with pytest.raises(CheckpointError, match=r"damaged.*resume from an earlier checkpoint"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
