"""What a model that was trained in a loop is exported to, and that it computes the same there."""

import copy
import io

import torch

import orthotrain

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def assert_exports(model, x):
    """As dense and as factored model: a pickle, torch.export with a free batch; ONNX once.

    Args:
        model: Low-rank, called with one tensor; it gives one.
        x: A batch of two or more.
    """
    import onnxruntime

    assert any(isinstance(m, orthotrain.layers._factors.LowRankModule) for m in model.modules())
    model = model.eval()
    with torch.no_grad():
        expected = model(x)
    for form in (orthotrain.to_dense, orthotrain.to_factored):
        plain = form(copy.deepcopy(model))
        assert not any("orthotrain" in type(m).__module__ for m in plain.modules())
        with torch.no_grad():
            torch.testing.assert_close(plain(x), expected, **TOLERANCE)
        file = io.BytesIO()
        torch.save(plain, file)
        assert b"orthotrain." not in file.getvalue()
        shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
        program = torch.export.export(plain, (x,), dynamic_shapes=shapes)
        larger = torch.cat([x, x])
        torch.testing.assert_close(
            program.module()(larger), torch.cat([expected, expected]), **TOLERANCE
        )
        if form is orthotrain.to_factored:
            continue  # as any two layers
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
        (name,) = (each.name for each in session.get_inputs())
        (there,) = session.run(None, {name: larger.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(there), torch.cat([expected, expected]), **TOLERANCE
        )
