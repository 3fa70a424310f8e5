"""What the frameworks need beside a CPU build of torch."""

import torch

# torchvision's wheel, if it is there, does not import without these two operators.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
