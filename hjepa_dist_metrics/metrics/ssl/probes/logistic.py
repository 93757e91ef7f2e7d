"""Multinomial logistic regression on rows in memory: a convex problem, solved by L-BFGS."""

from __future__ import annotations

import torch
from torch import Tensor

# Multiply-adds of all iterations together, about a second of one core; small problems end earlier.
_BUDGET = 1 << 34
_LEAST, _MOST = 20, 100  # iterations
_GRADIENT = 1e-5  # largest entry of the gradient of the mean loss at which the iteration ends
# Beyond as many multiply-adds an iteration, float32: half the time.
_WIDE = 1 << 28


def fit_logistic(rows: Tensor, classes: Tensor, number: int, l2: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return weights [C, D] and biases [C], float64, that minimise loss + l2 / (2 n) |W|^2 on rows [n, D].

    The loss is the mean cross-entropy of the classes int64 [n], 0 to C - 1; biases are not penalised. It is
    the objective of scikit-learn's LogisticRegression(C=1 / l2). Rows should be standardised.
    """
    work = rows.numel() * number
    dtype = torch.float32 if work > _WIDE else torch.float64
    x = torch.cat([rows, rows.new_ones((len(rows), 1))], dim=1).to(dtype)
    targets = torch.nn.functional.one_hot(classes, number).to(dtype)
    penalty = x.new_full((1, x.shape[1]), l2 / len(x))
    penalty[:, -1] = 0.0
    weights = x.new_zeros((number, x.shape[1]))
    weights.grad = torch.zeros_like(weights)
    iterations = min(_MOST, max(_LEAST, _BUDGET // max(4 * work, 1)))
    solver = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=_GRADIENT, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        with torch.no_grad():
            log_probabilities = torch.log_softmax(x @ weights.T, dim=1)
            decayed = penalty * weights
            weights.grad = (log_probabilities.exp() - targets).T @ x / len(x) + decayed
            return 0.5 * (decayed * weights).sum() - (targets * log_probabilities).sum() / len(x)

    solver.step(closure)  # type: ignore[no-untyped-call]
    solution = weights.to(torch.float64)
    return solution[:, :-1], solution[:, -1]
