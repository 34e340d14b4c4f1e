"""What the names of conditions and metrics mean, for readers who are not specialists.

A name that is not here appears without an explanation; nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONDITIONS", "KIND_QUESTIONS", "METRICS", "VALUES"]

# What nobody knows about a model without evidence of a kind. A reference says nothing
# of the model itself, and is missing nowhere.
KIND_QUESTIONS: Mapping[str, str] = {
    "fairness": "whether it treats groups of people alike",
    "membership": "whether it gives away who was in its training data",
    "parity": "whether the file computes what was trained",
    "privacy": "what it may reveal about a row of its training data",
    "provenance": "what it was trained on, how, and for which use",
    "quality": "how good its answers are",
    "robustness": "how small a change of an input changes the answer",
    "structure": "whether the file holds anything beside a model",
}

CONDITIONS: Mapping[str, str] = {
    "predicts": '"number": the model predicts a number, and decides among no classes',
    "accountant": "how the loss of all steps was added up",
    "adversarial_training": "whether it was trained against attacks",
    "beside": "another model of the same rows, for comparison",
    "beside_adversarial_training": "the same of that model",
    "beside_epsilon": "the same of that model",
    "clipping": "what bounds the effect of one row",
    "covers_holdout": "whether epsilon also counts what is published of held-out rows",
    "delta": "chance with which the bound may fail",
    "hyperparameters": '"private_selection": tuned, and epsilon covers the tuning',
    "max_grad_norm": "length that each row's gradient is cut to",
    "mechanism": "where the noise goes",
    "neighbouring": "which two data sets epsilon compares",
    "noise_floating_point": "guard against what rounding in the noise reveals",
    "noise_generator": "where the randomness comes from",
    "noise_multiplier": "noise, relative to the clipping length",
    "normalisation": "what summed gradients are divided by",
    "normalisation_constant": "that divisor",
    "output_policy": "what leaves of an answer, and attackers were given",
    "personal_data": "whether the rows are about people",
    "precision": "of the network's products while it was trained",
    "preprocessing": '"public_ranges": nothing was learned from the rows beforehand',
    "processes": "how many trained together",
    "row_count": '"public": how many rows there are is not protected',
    "sample_rate": "chance of each row to be in a step",
    "sampling": "how the rows of a step are drawn",
    "search_bound": "what says how much the tuning costs",
    "search_candidates": "how many settings it chose from",
    "search_distribution": "of the number of tries, which nobody is told",
    "search_expected_tries": "its mean",
    "search_score": "what was best is best at this",
    "shadows": '"same_recipe" or "trees_alike": how such models were trained',
    "search_score_noise": "noise on the score, in units",
    "steps": "how many noisy steps, in one training",
    "steps_in_weights": "steps behind the weights; others were lost, and paid for",
    "target_epsilon": "what training aimed at",
    "verdicts_cover": "which steps the checks below looked at",
    "unit": "what is protected: one of these, not all that one person contributed",
}

# Words of conditions, where the value says more than the name.
VALUES: Mapping[tuple[str, str], str] = {
    ("accountant_bound", "upper"): "epsilon is an upper bound, not an estimate",
    ("neighbouring", "add_or_remove_one"): "data sets that differ by one row, "
    "added or removed",
    ("neighbouring", "replace_one"): "data sets of one size that differ in one row",
    ("reference", "answers_of_the_original"): "compared with what the importer says "
    "that the original answers",
    ("sampling", "poisson"): "each row by its own coin toss, in every step",
}

METRICS: Mapping[str, str] = {
    "accuracy": "share of right answers",
    "all_scores_auc": "the same where all scores would leave",
    "attacked_mae": "the same where the input is moved to do harm",
    "auc": "0.5 is chance, 1 is perfect",
    "beside_attacked_mae": "of the model beside it, under the same attack",
    "beside_clean_mae": "of the model beside it, without an attack",
    "beside_clean_accuracy": "of the model beside it, without an attack",
    "beside_robust_accuracy": "of the model beside it, under the same attack",
    "calibration_error": "mean gap between confidence and accuracy",
    "clean_accuracy": "share of right answers without an attack",
    "clean_mae": "mean absolute error without an attack",
    "delta": "chance with which the bound may fail",
    "epsilon": "the stated bound",
    "epsilon_dp_accounting_rdp": "the same by another library",
    "epsilon_pld": "the same by privacy loss distributions",
    "epsilon_rdp": "the same by Rényi divergence, which is looser",
    "errors": "findings that refuse a file",
    "label_agreement": "share of rows with the same answer",
    "largest_change": "the largest change of an answer within the radius, of all rows",
    "learned_auc": "of an attack that was fitted",
    "log_loss": "mean surprise at the truth, in nats",
    "loss_auc": "of an attack that calls what the model is sure about a member",
    "lira_auc": "of an attack with models that were trained alike, on other rows",
    "mae": "mean absolute error, in the unit of what is predicted",
    "mae_after": "mean absolute error of this version",
    "mae_before": "mean absolute error of the version before",
    "mae_difference": "largest minus smallest error of the groups",
    "mae_ratio": "smallest by largest error of the groups; 1 is equal",
    "max_abs_difference": "largest difference",
    "max_relative_difference": "the same, as a share of the largest number expected",
    "mean_error": "answer minus truth: how much too high on average",
    "mean_error_difference": "largest minus smallest of the groups",
    "mean_largest_change": "the mean, over rows, of the largest change in the radius",
    "median_absolute_error": "half of the answers are nearer to the truth",
    "noise_multiplier": "noise, relative to the clipping length",
    "parity_difference": "between the attacked copy and the file as served",
    "r2": "share of the truth's variance that is explained; 1 is all",
    "radius": "how far each input may be moved",
    "relative_change": "the mean largest change, in standard deviations of the truth",
    "residual_auc": "of an attack that calls who is predicted closely a member",
    "robust_accuracy_edits": "share that stays right while the text is edited",
    "rmse": "root of the mean squared error",
    "robust_accuracy": "share that stays right under attack",
    "rows_that_differ": "rows with another answer than the original's",
    "rule_auc": "of an attack that calls who is classified rightly a member",
    "stable_share": "share of answers that move by no more than the tolerance",
    "tolerance": "how far an answer may move",
    "tpr_at_fpr_1pct": "share of members found while 1% of others are called members",
}
