"""What is planned before anything is attacked.

options  the profiles, and the budgets that bound them
source   where the model comes from, and what is known of it
context  target and data fitted to each other, for every process
rows     rows as the model takes them, and their truth as it counts it
checks   what a check is: units of work, and a conclusion from what they gave
images   which rows are images, and how one is drawn
"""
