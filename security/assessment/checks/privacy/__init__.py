"""What a model gives away about the rows it was trained on, and about itself.

trained     rows that were trained on, beside rows that were not
shadows     many models trained at once, by the recipe of the target
signals     LiRA, RMIA and the loss attack: scores from a target and its shadows
curves      ROC, and the rates an attacker would name
answers     membership by answers and by labels alone, as scores per row
attributes  attribute inference, against those who see no answer
inversion   pictures of classes, climbed from the gradient
left        what an output policy leaves, and what attackers make of that
thieves     extraction attacks behind ART's interface
bounds      lower bounds on epsilon from what an attacker told apart
canaries    trainings with planted units, judged against a claim
canary_check  the same as a check of a scan
membership  the membership check of a scan
extraction  a copy of the model from its answers
explained   what explanations give away: members, and cheaper copies
"""
