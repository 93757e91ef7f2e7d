"""How parameters lie over ranks, and what of them a rank answers for."""
