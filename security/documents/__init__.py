"""Documents that are computed from a bundle's evidence, never written by hand.

markup           escaping: text from reports is somebody else's
facts            what a bundle states, read once for all documents
values           numbers and conditions as people read them
glance           the figures that a reader asks for first
glossary         what the names of conditions and metrics mean, for people
limitations      what the evidence does not show
curves           of a model that explains itself, for its card
front_matter     YAML at the top of the card, as model hubs read it
model_card       MODEL_CARD.md
bom              CycloneDX ML-BOM; bom.cdx.json is the one in a bundle
spdx             the same as SPDX 3.0
sourced          sentences that name the verified file they rest on
annex_iv, annex_iv_points  technical documentation of the EU AI Act
dp_register      an entry for a register of private deployments
sbom             CycloneDX SBOM of the serving image
provenance       how that image was made, as SLSA provenance
monitoring       a page of what became of served versions over time
"""
