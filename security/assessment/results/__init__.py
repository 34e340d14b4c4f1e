"""What checks conclude.

intervals  confidence intervals
rules      what can be found: ids, severities, remedies
result     a check's metrics, conditions and findings
report     scan.json, and the evidence of a bundle
"""
