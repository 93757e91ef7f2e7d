"""Names of the alert rules: what `logging.alerts.stop_on` takes and what `alerts/{rule}` is called by."""

from __future__ import annotations

ALERT_RULES: dict[str, str] = {
    "collapse": "features of the context, of the target's finest level or of a stream that you named lose "
    "their rank or their spread, or point all the same way; coarser levels (means of tokens, alike by "
    "design) and predictions (rightly of lower rank than their targets) are shown and not judged",
    "frozen_teacher": "the target encoder does not move although its momentum is below 1",
    "repeated_masks": "the same mask is drawn again and again",
    "loss_spike": "the loss jumps far out of its recent range",
    "vanishing_gradients": "the global gradient norm is next to zero",
    "exploding_gradients": "the global gradient norm is far above its recent range",
    "nonfinite": "a loss, gradient or feature is NaN or infinite",
    "level_imbalance": "one hierarchy level carries nearly all of the loss",
    "misaligned_modalities": "right pairs of two modalities are no more alike than any pairs",
    "no_diagonal": "a similarity matrix has no diagonal that chance would not give",
    "generalization_gap": "training frames are reconstructed far better than validation frames",
    "gradient_range": "the gradient norm of a model with several heads vanishes or explodes",
    "head_imbalance": "the gradient of one head drowns another's",
    "poor_semantics": "the semantic head's embeddings stay far from the frozen encoder's",
    "loss_oscillation": "the loss of the epochs swings up and down",
    "overfitting": "the validation loss rises away from the training loss",
}
