"""Models of Transformers after ``to_factored``: they run, are saved as folders, and come back."""

import copy
import io
import json

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

import orthotrain  # noqa: E402
from integrations.test_transformers import equal, gpt, trainer, vit  # noqa: E402
from orthotrain import Relative  # noqa: E402
from orthotrain.errors import CheckpointError, ConfigError, OrthotrainWarning  # noqa: E402
from orthotrain.integrations.transformers import from_pretrained, save_pretrained  # noqa: E402
from orthotrain.layers import LowRankConv1d, LowRankConvTranspose1d  # noqa: E402
from orthotrain.lowrank.two_layers import ranks_of_pairs  # noqa: E402

IDS = {"input_ids": torch.arange(8)[None]}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)}
COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip


def make(name):
    """A tiny model with random weights, and what it is called with."""
    torch.manual_seed(0)
    t = transformers
    match name:
        case "GPT-2":
            return gpt().eval(), IDS
        case "ViT":  # reads patch_embeddings.projection.weight.dtype
            return vit().eval(), IMAGES
        case "BERT":
            return t.BertForSequenceClassification(t.BertConfig(**COMMON)).eval(), IDS
        case "Llama":
            return t.LlamaForCausalLM(t.LlamaConfig(**COMMON)).eval(), IDS
        case "T5":  # reads wo.weight.dtype
            config = t.T5Config(
                vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
                decoder_start_token_id=0, feed_forward_proj="gated-gelu",
            )  # fmt: skip
            both = IDS | {"decoder_input_ids": IDS["input_ids"]}
            return t.T5ForConditionalGeneration(config).eval(), both
        case "CLIP":  # reads patch_embedding.weight.dtype
            config = t.CLIPVisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                image_size=8, patch_size=4,
            )  # fmt: skip
            return t.CLIPVisionModel(config).eval(), IMAGES


MODELS = {"GPT-2": 3, "ViT": 6, "BERT": 5, "Llama": 4, "T5": 10, "CLIP": 6}
SAVES = {"ours": save_pretrained, "the model's own": lambda m, folder: m.save_pretrained(folder)}
saves = pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)


def factored(name="ViT", **settings):
    model, x = make(name)
    return orthotrain.to_factored(orthotrain.compress(model, stored_budget=0.5, **settings)), x


def output(model, x):
    with torch.no_grad():
        return model(**x)[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_factored_model_runs_in_any_dtype_and_comes_back_bit_for_bit(tmp_path, name):
    model, x = make(name)
    orthotrain.compress(model, stored_budget=0.5)
    before = output(model, x)
    orthotrain.to_factored(model)
    assert len(ranks_of_pairs(model)) >= MODELS[name]
    torch.testing.assert_close(output(model, x), before, rtol=1e-4, atol=1e-5)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in x.items()}
    assert output(copy.deepcopy(model).bfloat16(), half).dtype == torch.bfloat16
    for kind, save in SAVES.items():
        folder = tmp_path / kind
        save(model, folder)
        with pytest.raises(OSError, match="safetensors"):
            type(model).from_pretrained(folder)
        loaded = from_pretrained(type(model), folder)
        assert equal(model, loaded)
        assert torch.equal(output(loaded, x), output(model, x))
        assert ranks_of_pairs(loaded) == ranks_of_pairs(model)
        said = json.loads((folder / "config.json").read_text())["orthotrain"]
        assert (said["two_layers"], said["ranks"]) == (ranks_of_pairs(model), {})
        loaded.save_pretrained(tmp_path / f"{kind} again")
        assert equal(from_pretrained(type(model), tmp_path / f"{kind} again"), model)


class MixedConfig(PreTrainedConfig):
    model_type = "orthotrain-test-mixed"


class Mixed(PreTrainedModel):
    """One of each class of layers."""

    config_class = MixedConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(40, 24, padding_idx=3)
        self.linear, self.other = nn.Linear(24, 24), nn.Linear(24, 24, bias=False)
        self.again = self.linear  # one layer at two places
        self.other.weight = self.linear.weight  # two layers with one weight
        self.turned = Conv1D(32, 24)
        self.conv = nn.Conv1d(32, 16, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(16, 24, 4, stride=2, padding=1)
        self.recurrent = nn.LSTM(24, 24, batch_first=True)
        self.head = nn.Linear(24, 5)
        self.post_init()

    def forward(self, input_ids):
        x = self.again(self.other(self.linear(self.embed(input_ids))))
        x = self.up(self.conv(self.turned(x).mT)).mT
        return (self.head(self.recurrent(x)[0]),)


AutoConfig.register("orthotrain-test-mixed", MixedConfig)
ALSO = ["embedding", "lstm"]


def mixed(bases="trained"):
    torch.manual_seed(0)
    model = Mixed(MixedConfig()).eval()
    model.conv = LowRankConv1d.from_conv(model.conv, rank=3, bases=bases)
    model.up = LowRankConvTranspose1d(16, 24, 4, stride=2, padding=1, rank=3)
    skip = ["head", "conv", "up"]
    orthotrain.compress(model, rank=Relative(0.6), also=ALSO, skip=skip, bases=bases)
    return orthotrain.to_factored(model)


@saves
@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_every_class_of_layers_comes_back(tmp_path, save, bases):
    model = mixed(bases)
    names = {"embed", "linear", "other", "again", "turned", "conv", "up"}
    assert ranks_of_pairs(model).keys() == names
    save(model, tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        Mixed.from_pretrained(tmp_path)
    loaded = from_pretrained(Mixed, tmp_path)
    assert equal(model, loaded)
    assert torch.equal(output(loaded, IDS), output(model, IDS))
    assert loaded.again is loaded.linear
    assert loaded.other[1].weight is loaded.linear[1].weight
    assert loaded.up[0].output_padding == model.up[0].output_padding
    assert loaded.embed[0].padding_idx == 3


@saves
def test_pairs_whose_layers_are_cut_again_come_back(tmp_path, save):
    model, x = factored()
    deeper = orthotrain.compress(copy.deepcopy(model), energy=0.2)
    nested = orthotrain.to_factored(copy.deepcopy(deeper))
    assert any(name.endswith((".0", ".1")) for name in ranks_of_pairs(nested))
    for kind, each in (("low-rank", deeper), ("nested", nested)):
        save(each, tmp_path / kind)
        loaded = from_pretrained(type(model), tmp_path / kind)
        assert equal(loaded, each)
        assert torch.equal(output(loaded, x), output(each, x))


def test_a_trainer_trains_a_factored_model_and_its_checkpoints_are_read(tmp_path):
    model, _ = factored("GPT-2")
    watch = orthotrain.integrations.transformers.OrthotrainCallback(
        orthotrain.BasisStability(every_steps=4)
    )
    made, _ = trainer(tmp_path, gpt, model=model, callback=watch)
    made.train()
    assert equal(from_pretrained(type(model), tmp_path / "checkpoint-12"), made.model)
    resumed, _ = trainer(tmp_path, gpt, model=copy.deepcopy(model), callback=watch)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert equal(resumed.model, made.model)


@pytest.mark.bad_input
def test_a_pickle_needs_no_library_and_never_saves_what_would_be_random(tmp_path):
    model, x = factored()
    file = io.BytesIO()
    torch.save(model, file)
    assert b"orthotrain." not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(output(loaded, x), output(model, x))
    with pytest.raises(KeyError, match="call its follow"):
        loaded.save_pretrained(str(tmp_path / "refused"), state_dict={})
    assert not (tmp_path / "refused").exists()
    save_pretrained(loaded, tmp_path / "ours")
    orthotrain.follow(loaded).save_pretrained(tmp_path / "own")
    for folder in ("ours", "own"):
        assert equal(from_pretrained(type(model), tmp_path / folder), model)


@pytest.mark.bad_input
def test_what_cannot_be_saved_or_read_is_told(tmp_path):
    model, _ = factored()
    with pytest.raises(ConfigError, match="before to_factored, or leave dense out"):
        save_pretrained(model, tmp_path, dense=True)
    with pytest.raises(ConfigError, match=r"model\.push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path)
    for name, said in (("vit.layers.7.mlp.fc1", "missing"), ("vit.layernorm", "LayerNorm")):
        config = json.loads((tmp_path / "config.json").read_text())
        config["orthotrain"]["two_layers"] = {name: 4}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"{name}.*{said}.*build the model"):
            from_pretrained(type(model), tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("settings", [{"num_labels": 5}, {"hidden_size": 64}, {}], ids=str)
def test_other_sizes_than_those_that_were_saved_are_told(tmp_path, settings):
    model, _ = factored()
    model.save_pretrained(tmp_path)
    if not settings:
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        config["orthotrain"]["two_layers"]["vit.layers.0.mlp.fc1"] += 1
        path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"size mismatch for .*leave out settings") as caught:
        from_pretrained(type(model), tmp_path, **settings)
    assert "config.json that was saved" in str(caught.value)


@pytest.mark.bad_input
def test_a_tensor_that_the_model_does_not_have_is_told(tmp_path):
    model, _ = factored("GPT-2")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"more": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks or has others: more; take the class"):
        from_pretrained(type(model), tmp_path)


def test_layers_whose_values_are_read_become_dense_and_are_named():
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4
    )
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(config).eval()
    orthotrain.compress(model, stored_budget=0.5)
    before = output(model, IDS)
    with pytest.warns(OrthotrainWarning, match=r"mixer\.out_proj \(MambaMixer reads \.weight\)"):
        orthotrain.to_factored(model)
    assert type(model.backbone.layers[0].mixer.out_proj) is nn.Linear
    torch.testing.assert_close(output(model, IDS), before, rtol=1e-4, atol=1e-5)
