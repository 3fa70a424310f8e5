"""What is refused reads as ``docs/loops.md`` has it: each message there is one that was raised."""

import re
import warnings
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("lightning")

from transformers import GPT2LMHeadModel, Trainer  # noqa: E402

import orthotrain  # noqa: E402
from integrations import test_lightning as in_lightning  # noqa: E402
from integrations import test_trainers_in_a_row as in_a_row  # noqa: E402
from integrations.hidden import Hidden  # noqa: E402
from integrations.test_transformers import Examples, gpt, trainer  # noqa: E402
from orthotrain import AdaptiveLowRank, BasisStability  # noqa: E402
from orthotrain.integrations.transformers import (  # noqa: E402
    OrthotrainCallback,
    from_pretrained,
)
from orthotrain.lowrank.state_dicts import read_any  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "loops.md"
pytestmark = [pytest.mark.bad_input, pytest.mark.filterwarnings("ignore")]


def two_callbacks(folder):
    trainer(folder, callbacks=[OrthotrainCallback(BasisStability(every_steps=4))])


def trained(folder, make=gpt):
    made, _ = trainer(folder, gpt, model=make())
    made.train()
    return folder / "checkpoint-12"


def another_model(folder):
    trainer(folder)[0].train(resume_from_checkpoint=str(trained(folder, in_a_row.deeper)))


def another_model_in_lightning(folder):
    class Deeper(in_lightning.Net):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(3, 3)

    in_lightning.fit(folder, module=Deeper())
    in_lightning.fit(folder, resume=folder / "step=4.ckpt")


def no_state(folder):
    checkpoint = trained(folder)
    (checkpoint / "orthotrain.pt").unlink()
    trainer(folder)[0].train(resume_from_checkpoint=str(checkpoint))


def no_state_in_a_loop(folder):
    def start():
        model = gpt()
        optimizer = torch.optim.AdamW(model.parameters())
        handle = orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=4)
        return model, optimizer, handle

    def step(model, optimizer, handle):
        model(**{"input_ids": torch.arange(8)[None]}).logits.square().mean().backward()
        optimizer.step()

    first = start()
    for _ in range(3):
        step(*first)
    resumed = start()
    resumed[0].load_state_dict(first[0].state_dict())
    resumed[1].load_state_dict(first[1].state_dict())
    step(*resumed)


def hidden_optimizer(folder):
    model = gpt()
    optimizer = Hidden(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    Trainer(
        model, trainer(folder)[0].args, train_dataset=Examples(gpt),
        callbacks=[OrthotrainCallback(AdaptiveLowRank())], optimizers=(optimizer, schedule),
    ).train()  # fmt: skip


def budget(folder):
    model = gpt()
    method = AdaptiveLowRank(stored_budget=0.05)
    orthotrain.attach(model, torch.optim.AdamW(model.parameters()), method, total_steps=10)


def no_model(folder):
    (folder / "notes.pt").write_text("no tensors")
    read_any(folder / "notes.pt")


class Code:
    def __reduce__(self):
        return print, ("code",)


def code(folder):
    torch.save({"weight": Code()}, folder / "code.pt")
    read_any(folder / "code.pt")


def nested(folder):
    inside = in_a_row.Nested(folder / "inside", copied=False)
    trainer(folder, callbacks=[inside])[0].train()


def damaged_config(folder):
    gpt().save_pretrained(folder)
    (folder / "config.json").write_text('{"n_embd": ')
    from_pretrained(GPT2LMHeadModel, folder)


def plain_loading(folder):
    orthotrain.to_factored(orthotrain.compress(gpt(), stored_budget=0.5)).save_pretrained(folder)
    GPT2LMHeadModel.from_pretrained(folder)


def idle_optimizer(folder):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    pair = [torch.optim.SGD(layer.parameters()) for layer in model]
    _handle = orthotrain.attach(model, pair, BasisStability(every_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", orthotrain.errors.OrthotrainWarning)
        for _ in range(40):
            model(torch.ones(2, 4)).sum().backward()
            pair[0].step()


CASES = [
    two_callbacks, another_model, another_model_in_lightning, no_state, no_state_in_a_loop,
    hidden_optimizer, budget, no_model, code, nested, damaged_config, plain_loading,
    idle_optimizer,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_refusal_reads_as_on_the_page(tmp_path, case):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # its type is compared below
        case(tmp_path)
    said = f"{type(caught.value).__name__}: {caught.value}".replace(str(tmp_path), "FOLDER")
    said = re.sub(r"at 0x[0-9a-f]+", "at 0x...", said)
    assert " ".join(said.split()) in " ".join(PAGE.read_text().split())
