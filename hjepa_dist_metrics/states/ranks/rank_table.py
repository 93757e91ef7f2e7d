"""A row of numbers from each rank, kept apart: a rank's memory, its times of the last steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, require_same_signature

_NAN = float("nan")


class RankTable(State):
    """Keep the latest row of `width` numbers on each rank; after a sync `.table`, float64 [n, width].

    NaN stands for an unknown value; a rank that has not updated has a row of NaN. `.ranks` [n] are the rows'
    ranks. Of more than `most` ranks the `kept` rows with the largest sums stay, and of the others together
    `.rest`, float64 [4, width]: how many numbers, their sum, the smallest and the largest.
    """

    fixed = False

    def __init__(self, width: int, most: int = 256, kept: int = 32) -> None:
        if width < 1:
            raise ConfigError(f"a row needs at least one number, got width={width}")
        if not 1 <= kept <= most:
            raise ConfigError(f"expected 1 <= kept <= most, got kept={kept} and most={most}")
        self.width, self.most, self.kept = width, most, kept
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        rows = torch.full((1, 1 + self.width), _NAN, dtype=torch.float64, device="cpu")
        return {"rows": rows, "rest": torch.zeros((0, self.width), dtype=torch.float64, device="cpu")}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._rows, self._rest = tensors["rows"], tensors["rest"]

    @property
    def signature(self) -> str:
        """Describe kind and width."""
        return f"RankTable[{self.width}, {self.kept} of {self.most}]"

    @property
    def is_empty(self) -> bool:
        """Return whether no rank has given a row."""
        return bool(np.isnan(self.table).all()) and not len(self._rest)

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """Return the rows."""
        return self._rows[:, 1:].cpu().numpy()

    @property
    def row(self) -> Tensor:
        """Return this rank's row, float64 [width] on its device."""
        return self._rows[0, 1:]

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """Return the rank of each row, rising; 0 for the only row before a sync."""
        return self._rows[:, 0].nan_to_num().to(torch.int64).cpu().numpy()

    @property
    def rest(self) -> npt.NDArray[np.float64]:
        """Return count, sum, least and largest of each column over the rows that did not stay."""
        rest = self._rest if len(self._rest) else _nothing(self.width)
        return rest.cpu().numpy()

    def empty(self) -> RankTable:
        """Return a row of NaN."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return the rows, a rank before each, and what is known of the others, of which there are few."""
        return {"rows": self._rows, "rest": self._rest}

    def unpack(self, tensors: Mapping[str, Tensor]) -> RankTable:
        """Return a row to go on with: the only one of a table, NaN for one of many ranks."""
        blank = self._blank()
        rows = tensors["rows"].clone() if len(tensors["rows"]) == 1 else blank["rows"]
        rows[:, 0] = _NAN
        return self.adopt({"rows": rows, "rest": blank["rest"]})

    def signed(self, rank: int, steps: int) -> RankTable:
        """Return the row as that of `rank`; NaN for a table of an earlier sync."""
        rows = self._rows if len(self._rows) == 1 else self._blank()["rows"]
        number = torch.full((1, 1), float(rank), dtype=torch.float64, device=rows.device)
        return self.adopt({"rows": torch.cat([number, rows[:, 1:]], dim=1), "rest": self._blank()["rest"]})

    def update(self, row: Numeric) -> None:
        """Replace this rank's row."""
        values = as_tensor(row, self._rows.device)
        if values.numel() != self.width:
            raise ConfigError(f"expected {self.width} numbers, got {values.numel()}")
        number = torch.full((1, 1), _NAN, dtype=torch.float64, device=values.device)
        rows = torch.cat([number, values.to(torch.float64).reshape(1, -1)], dim=1)
        self._load({"rows": rows, "rest": self._rest})

    def merge(self, other: RankTable) -> RankTable:
        """Put the ranks' rows under each other; of one rank take the later row, where it holds anything."""
        require_same_signature(self, other)
        if bool(self._rows[0, 0].isnan()) or bool(other._rows[0, 0].isnan()):
            known = not bool(other._rows[:, 1:].isnan().all())
            return self.adopt((other if known else self).pack())
        rows = torch.cat([self._rows, other._rows.to(self._rows.device)])
        rest = _added(self._rest, other._rest.to(self._rest.device))
        return self.adopt(dict(zip(("rows", "rest"), self._bounded(rows, rest), strict=True)))

    def _bounded(self, rows: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        if len(rows) <= (self.kept if len(rest) else self.most):
            return rows, rest
        order = torch.argsort(rows[:, 1:].nan_to_num().sum(dim=1), descending=True, stable=True)
        stays, goes = order[: self.kept].sort().values, order[self.kept :]
        return rows[stays], _added(rest, _summary(rows[goes, 1:]))


def _nothing(width: int) -> Tensor:
    ends = torch.tensor([0.0, 0.0, float("inf"), float("-inf")], dtype=torch.float64, device="cpu")
    return ends[:, None].repeat(1, width)


def _summary(rows: Tensor) -> Tensor:
    known = ~rows.isnan()
    least, largest = rows.nan_to_num(nan=float("inf")), rows.nan_to_num(nan=float("-inf"))
    parts = [known.sum(dim=0).to(rows.dtype), rows.nan_to_num().sum(dim=0), least.amin(dim=0)]
    return torch.stack([*parts, largest.amax(dim=0)])


def _added(one: Tensor, other: Tensor) -> Tensor:
    if not len(one) or not len(other):
        return one if len(one) else other
    sums = one[:2] + other[:2]
    return torch.cat([sums, torch.minimum(one[2:3], other[2:3]), torch.maximum(one[3:], other[3:])])
