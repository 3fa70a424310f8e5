"""One Trainer after another on the same model."""

import pytest

transformers = pytest.importorskip("transformers")

from transformers import TrainerCallback  # noqa: E402

from integrations.test_transformers import STEPS, gpt, trainer  # noqa: E402


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
