"""Reports in the formats that people and their tools read, from one scan.json.

documents   all formats of one report, written side by side
taxonomies  MITRE ATLAS, NIST AI 100-2, OWASP: what each rule is tagged with
sarif       SARIF 2.1.0, for code scanning
junit       JUnit XML, for test dashboards
html        one page for people, in the frame of `sealgate.page`
summary     its first screen
figures     the same, piece by piece, for notebooks
grouped     figures of groups, to be drawn beside each other
rows        what became of each row
words       what it calls things, and where links lead
pictures    small images, in the page
pairs       the same rows in two reports, and McNemar's test
comparison  what got better or worse between two reports
versions    how much worse a version is than the one it would replace
"""
