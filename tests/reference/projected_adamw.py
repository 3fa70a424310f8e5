"""AdamW on projected gradients, one matrix, in float64, by the words of the paper."""

import torch


def projected_adamw(weight, gradients, *, rank, refresh_steps, lr, betas, eps, weight_decay):
    """All weights after each step, for a list of gradients; the smaller side is projected."""
    if weight.shape[0] > weight.shape[1]:
        gradients = [g.T for g in gradients]
        found = projected_adamw(
            weight.T, gradients, rank=rank, refresh_steps=refresh_steps, lr=lr, betas=betas,
            eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
        return [w.T for w in found]
    w, m, v, seen = weight.double(), 0.0, 0.0, []
    for t, g in enumerate(gradients):
        g = g.double()
        if t % refresh_steps == 0:
            # Eigenvectors of g g^T, so that no SVD is shared with the fast path.
            p = torch.linalg.eigh(g @ g.T).eigenvectors.flip(-1)[:, :rank]
            for column in p.T:  # the largest entry is positive
                column *= 1 if column[column.abs().argmax()] > 0 else -1
        r = p.T @ g
        m = betas[0] * m + (1 - betas[0]) * r
        v = betas[1] * v + (1 - betas[1]) * r**2
        m_hat = m / (1 - betas[0] ** (t + 1))
        v_hat = v / (1 - betas[1] ** (t + 1))
        w = w - lr * weight_decay * w - lr * p @ (m_hat / (v_hat.sqrt() + eps))
        seen.append(w)
    return seen
