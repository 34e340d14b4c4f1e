"""What is planned before anything is attacked.

options  the profiles, and the budgets that bound them
context  target and data fitted to each other, for every process
checks   what a check is: units of work, and a conclusion from what they gave
"""
