"""The same questions of a model that predicts a number.

measures    errors, and how they are compared by group
answers     NaN, randomness, one answer for everything
quality     errors, by slice, and on rows that are not as usual
fairness    errors by group of people
change      how far the answer moves within a radius
bounded     how far it can move at most
found       the chunks of one norm put together
search      the highest and the lowest answer of each ball
membership  who was in the training data, by residuals
"""
