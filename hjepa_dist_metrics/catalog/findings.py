"""All findings of the judge by name: what `stop_on` takes and what `alerts/{finding}` is called by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Description:
    """Describe a finding.

    Args:
        group: what `stop_on` calls all findings of its kind.
        severity: "failing" where the run is not worth its time, "warning" where it may be.
        title: what is wrong, in a few words.
        cause: what usually makes it.
        advice: what to try next.
        explains: names of findings that follow from this one and are shown with it.
        is_event: it lasts until its number is back within its limit, and what followed from it has ended.
    """

    group: str
    severity: Literal["warning", "failing"]
    title: str
    cause: str
    advice: str
    explains: tuple[str, ...] = ()
    is_event: bool = False


_COLLAPSES = (
    "dimensional_collapse",
    "cluster_collapse",
    "dead_features",
    "norm_vanishing",
    "loss_drop",
    "gradient_vanishing",
    "plateau",
    "ignored_input",
    "loss_level_shift",
    "loss_spike",
    "forgetting",
)
_DIVERGENCE = (
    "gradient_explosion",
    "norm_explosion",
    "loss_spike",
    "loss_level_shift",
    "clipping_every_step",
    "plateau",
    "point_collapse",
    "image_collapse",
    "partial_collapse",
    "dead_features",
    "gradient_vanishing",
    "norm_vanishing",
    *_COLLAPSES,
)

FINDINGS: dict[str, Description] = {
    "nonfinite": Description(
        "optimization",
        "failing",
        "NaN or infinite values",
        "an overflow in half precision, a division by zero, a learning rate that is too high, or bad data",
        "look at the tag that became nonfinite first; lower the learning rate; check the data of that step",
        explains=(*_DIVERGENCE, "learning_rate_too_high"),
    ),
    "point_collapse": Description(
        "collapse",
        "failing",
        "all samples have the same features",
        "a missing stop-gradient, teacher or variance term: the constant is the best answer to the loss",
        "check that the target carries no gradient and the teacher follows by a moving average; raise the "
        "variance term's weight",
        explains=("image_collapse", "partial_collapse", *_COLLAPSES),
        is_event=True,
    ),
    "image_collapse": Description(
        "collapse",
        "failing",
        "tokens tell their place and not their image",
        "targets that the position alone predicts, as where the mask leaves no content to see",
        "make targets harder to tell from their place: larger blocks, less positional signal",
        explains=_COLLAPSES,
    ),
    "partial_collapse": Description(
        "collapse",
        "failing",
        "the loss dropped and the rank of the features with it",
        "the model found a shortcut: part of the features became constant or redundant",
        "go back to a checkpoint before the drop; raise the variance or covariance term",
        explains=_COLLAPSES,
        is_event=True,
    ),
    "cluster_collapse": Description(
        "collapse",
        "failing",
        "features fall onto a few points",
        "too few prototypes in use, a temperature that is too low, or a centring that does not run",
        "check centring and sharpening; raise the teacher's temperature",
        explains=("dimensional_collapse", "loss_drop", "norm_vanishing"),
        is_event=True,
    ),
    "dimensional_collapse": Description(
        "collapse",
        "failing",
        "features use few of their dimensions",
        "redundant features: strong augmentation, a weak covariance term, or a projector that hides it",
        "raise the covariance term's weight or the batch size; look at collapse/spectrum",
        explains=("loss_drop",),
        is_event=True,
    ),
    "dead_features": Description(
        "collapse",
        "failing",
        "features that are constant over all samples",
        "dead units, as after steps that were too large, or a norm's scale that went to zero",
        "look at collapse/min_std_per_dim; lower the learning rate or the weight decay of scales",
        explains=("dimensional_collapse",),
    ),
    "norm_explosion": Description(
        "collapse",
        "failing",
        "the features' norm grows without end",
        "nothing holds the features' size: no normalisation, no weight decay",
        "normalise features or targets; lower the learning rate",
        is_event=True,
    ),
    "norm_vanishing": Description(
        "collapse",
        "failing",
        "the features' norm goes to zero",
        "a loss that a small output serves best, or a weight decay that is too strong",
        "normalise the targets; lower the weight decay",
        is_event=True,
    ),
    "ignored_input": Description(
        "collapse",
        "failing",
        "the predictor ignores its input",
        "the predictor sees no context, or its input is detached or masked out",
        "check what the predictor is given; compare its output for two images",
        explains=("loss_level_shift", "loss_spike", "dimensional_collapse"),
        is_event=True,
    ),
    "teacher_is_student": Description(
        "teacher",
        "failing",
        "the teacher is the student itself",
        "the teacher shares the student's parameters: no deep copy was made",
        "make the teacher by copy.deepcopy and update it by a moving average",
        explains=("frozen_teacher", *_COLLAPSES),
    ),
    "frozen_teacher": Description(
        "teacher",
        "failing",
        "the teacher does not move",
        "the moving average is not run, or runs on another module, as where a wrapper hides the student",
        "call the teacher's update after each optimizer step, on the unwrapped modules",
    ),
    "teacher_gets_gradients": Description(
        "teacher",
        "failing",
        "an optimizer moves the teacher",
        "the optimizer was given the parameters of the whole model",
        "set requires_grad_(False) on the teacher and leave it out of the optimizer",
        explains=("point_collapse", "partial_collapse", *_COLLAPSES),
    ),
    "repeated_masks": Description(
        "masks",
        "failing",
        "the same masks are drawn again and again",
        "workers or ranks share a seed, or the generator is made anew in each step",
        "seed the generator once for each rank and worker",
    ),
    "mask_leak": Description(
        "masks",
        "failing",
        "the context sees patches that it has to predict",
        "context and target masks overlap",
        "take the targets' patches out of the context",
        explains=("loss_drop", "loss_spike"),
    ),
    "degenerate_masks": Description(
        "masks",
        "failing",
        "masks hide nothing or everything",
        "a ratio or block size that does not fit the grid",
        "check the mask generator's settings against the number of patches",
        explains=("repeated_masks", "loss_drop", "loss_level_shift"),
    ),
    "learning_rate_too_high": Description(
        "optimization",
        "failing",
        "steps are too large for the weights",
        "a learning rate that is too high, or a warm-up that is missing",
        "lower the learning rate tenfold, or warm it up",
        explains=_DIVERGENCE,
        is_event=True,
    ),
    "learning_rate_too_low": Description(
        "optimization",
        "warning",
        "steps hardly change the weights",
        "a learning rate that is too low, or a warm-up that never ends",
        "raise the learning rate until update/{group}_ratio is about 1e-3",
        explains=("plateau",),
    ),
    "gradient_explosion": Description(
        "optimization",
        "failing",
        "the gradient norm has grown far beyond its range",
        "a learning rate that is too high, or a loss without a bound",
        "lower the learning rate, clip gradients, look at the module with the largest norm",
        explains=("loss_spike", "clipping_every_step", "norm_explosion", "loss_level_shift"),
        is_event=True,
    ),
    "gradient_vanishing": Description(
        "optimization",
        "failing",
        "the gradient norm goes to zero while there is a loss to reduce",
        "a saturated or detached part of the model, or a collapse",
        "look at gradients/{module}_total_norm for the module from which on it is zero",
        explains=("plateau",),
    ),
    "skipped_steps": Description(
        "optimization",
        "failing",
        "the optimizer takes no step",
        "the loss scaler finds nonfinite gradients at every scale",
        "train in bfloat16, or find the nonfinite gradient: gradients/first_nonfinite names it",
        explains=("plateau", "learning_rate_too_low", "nonfinite"),
    ),
    "weights_vanishing": Description(
        "optimization",
        "failing",
        "weights shrink towards zero",
        "a weight decay that is too strong for the learning rate",
        "lower the weight decay, and leave norms and biases out of it",
        explains=("norm_vanishing", "gradient_vanishing", "cluster_collapse", "dimensional_collapse"),
        is_event=True,
    ),
    "clipping_every_step": Description(
        "optimization",
        "warning",
        "every step is clipped to a small part of its gradient",
        "a threshold far below the usual norm: it sets the size of all steps",
        "set the threshold near gradient/global_norm_before_clip, or lower the learning rate",
    ),
    "clipped_unseen": Description(
        "optimization",
        "warning",
        "gradients are clipped before they are looked at",
        "another clip_grad_norm_ runs before monitor.observe_gradients(), so that the norm is the threshold",
        "clip with monitor.clip_grad_norm_, or call monitor.observe_gradients() before the clipping",
    ),
    "unoptimized_parameters": Description(
        "optimization",
        "warning",
        "trainable parameters that no optimizer holds",
        "a module that was added after the optimizer was made, or left out of its groups",
        "give the optimizer all parameters, or set requires_grad_(False) on those that stay fixed",
        explains=("point_collapse", "dimensional_collapse", "cluster_collapse", "plateau"),
    ),
    "unmoved_parameters": Description(
        "optimization",
        "warning",
        "a parameter group that never moves",
        "a detached module, a loss that does not reach it, or steps too small for half-precision weights",
        "look at gradients/{module}_total_norm: 0 says detached; else keep weights in float32",
        explains=("learning_rate_too_low",),
    ),
    "loss_spike": Description(
        "loss",
        "warning",
        "the loss jumped far out of its range",
        "a bad batch, a learning rate that is too high, or an overflow",
        "look at the data of that step; clip gradients",
    ),
    "loss_level_shift": Description(
        "loss",
        "warning",
        "the loss jumped and stays up",
        "a change of data or settings, a checkpoint that was restored in part, or a lost optimizer state",
        "compare what changed at that step: data, learning rate, resumed state",
        explains=("norm_vanishing", "dead_features"),
        is_event=True,
    ),
    "loss_drop": Description(
        "loss",
        "warning",
        "the loss dropped at once",
        "a shortcut: a collapse, a leak of the targets, or data that repeat",
        "compare collapse/* and kNN accuracy before and after; check masks and data",
        is_event=True,
    ),
    "plateau": Description(
        "loss",
        "warning",
        "the loss has not moved since the start",
        "labels or targets without relation to the inputs, a detached part, or a learning rate far off",
        "overfit a single batch first; check labels, targets and gradients by module",
        explains=("dead_features", "dimensional_collapse", "norm_vanishing"),
    ),
    "overfitting": Description(
        "loss",
        "warning",
        "the validation loss rises while the training loss falls",
        "the model learns its training data by heart, or a shortcut that the training data alone has",
        "stop at the best validation loss; augment or regularise more; look for labels that leak into inputs",
        explains=("loss_drop",),
    ),
    "level_imbalance": Description(
        "loss",
        "warning",
        "one hierarchy level carries nearly all of the loss",
        "level weights that do not fit the levels' losses",
        "weight levels so that none is above 90 %",
    ),
    "repeated_batches": Description(
        "data",
        "failing",
        "the same batches come again and again",
        "a sampler that is never advanced, or an iterator that is made anew in each step",
        "make the loader's iterator once an epoch; call sampler.set_epoch",
        explains=("loss_drop", "overfitting", *_COLLAPSES),
    ),
    "shared_shards": Description(
        "data",
        "failing",
        "ranks train on the same samples",
        "no distributed sampler, or one that does not know the ranks",
        "use DistributedSampler, or shard the stream by rank",
    ),
    "constant_inputs": Description(
        "data",
        "failing",
        "inputs hold one value only",
        "a broken reader, a normalisation by zero, or an empty file",
        "look at the inputs of the rank named",
        explains=_COLLAPSES,
    ),
    "early_end": Description(
        "data",
        "warning",
        "a rank ran out of data before the others",
        "shards of unequal length",
        "pad or drop the last samples so that all ranks have as many",
    ),
    "replica_drift": Description(
        "distribution",
        "failing",
        "replicas of the model differ between ranks",
        "parameters that are changed outside DDP, a missing broadcast, or gradients that are not reduced",
        "broadcast parameters from rank 0 and find what changes them on the rank named",
    ),
    "stale_buffers": Description(
        "distribution",
        "warning",
        "buffers of the model differ between ranks",
        "broadcast_buffers is off, or buffers are changed on one rank",
        "broadcast buffers from rank 0",
    ),
    "straggler": Description(
        "distribution",
        "warning",
        "one rank holds the others up",
        "slow data, another process on its machine, or a throttled device",
        "look at performance/straggler for the rank and what is slow on it",
    ),
    "throughput_decay": Description(
        "distribution",
        "warning",
        "the job has become slower",
        "a leak, a throttled device, slower storage, or inputs that grow",
        "compare performance/data_time_ms and step_time_ms with the start",
    ),
    "memory_growth": Description(
        "distribution",
        "warning",
        "memory grows by the step",
        "tensors that are kept with their graph, such as losses in a list",
        "detach what is kept; look for lists that grow",
    ),
    "forgetting": Description(
        "probes",
        "warning",
        "a probe falls while the loss goes on falling",
        "the objective is met by features that say less of the classes: a shortcut, or a slow collapse",
        "go back to the checkpoint with the best probe; look at collapse/effective_rank and at what the loss "
        "can be met by",
    ),
    "misaligned_modalities": Description(
        "matching",
        "warning",
        "right pairs of two modalities are no more alike than any pairs",
        "pairs that are shuffled against each other, or a loss that does not reach one side",
        "check the pairing of the data and the gradients of both encoders",
    ),
    "no_diagonal": Description(
        "matching",
        "warning",
        "a similarity matrix has no diagonal that chance would not give",
        "pairs that are shuffled against each other, or a loss that does not reach one side",
        "check the pairing of the data and the gradients of both encoders",
        explains=("misaligned_modalities",),
    ),
    "generalization_gap": Description(
        "reconstruction",
        "warning",
        "training frames are reconstructed far better than validation frames",
        "the model learns its training frames by heart",
        "more data, or a smaller model",
    ),
    "gradient_range": Description(
        "reconstruction",
        "warning",
        "the gradient norm of a model with several heads vanishes or explodes",
        "a learning rate or loss weight far off",
        "lower the learning rate; look at Train/Gradients/{module}_norm",
    ),
    "head_imbalance": Description(
        "reconstruction",
        "warning",
        "the gradient of one head drowns another's",
        "loss weights that do not fit the losses' sizes",
        "weight the heads by their gradients",
    ),
    "poor_semantics": Description(
        "reconstruction",
        "warning",
        "the semantic head's embeddings stay far from the frozen encoder's",
        "a head that is too small, or a weight that is too low",
        "raise the semantic loss's weight",
    ),
    "dead_units": Description(
        "internals",
        "warning",
        "half of a block's units have the same value on all inputs",
        "rectified units pushed below zero by a large step or bias, or a norm's scale that went to zero",
        "activation/dead names the blocks; lower the learning rate, or use a leaky activation",
    ),
    "attention_collapse": Description(
        "internals",
        "warning",
        "attention has collapsed onto single keys in most heads",
        "query and key weights that grow: softmax saturates and passes no gradient",
        "normalise queries and keys, warm up for longer or lower the learning rate; see attention/logit_max",
    ),
    "attention_logits_exploding": Description(
        "internals",
        "warning",
        "attention logits grow without end",
        "query and key weights that grow under a large learning rate",
        "normalise queries and keys or cap the logits; attention/largest_logit names the head",
        explains=("attention_collapse", "loss_spike"),
    ),
    "routing_collapse": Description(
        "internals",
        "warning",
        "nearly all tokens go to the same experts",
        "a missing or weak balancing loss: an expert that is ahead gets more tokens and learns faster",
        "raise the balancing loss or add noise to the router; experts/busiest names the expert",
    ),
    "loss_oscillation": Description(
        "reconstruction",
        "warning",
        "the loss of the epochs swings up and down",
        "a learning rate that is too high, or heads that pull against each other",
        "lower the learning rate",
    ),
}

GROUPS: dict[str, frozenset[str]] = {
    group: frozenset(name for name, found in FINDINGS.items() if found.group == group)
    for group in dict.fromkeys(description.group for description in FINDINGS.values())
}


def expand(names: list[str]) -> set[str]:
    """Return the findings that names of findings and groups stand for."""
    return {finding for name in names for finding in GROUPS.get(name, {name})}
