"""Documents that are computed from a bundle's evidence, never written by hand.

markup        escaping: text from reports is somebody else's
facts         what a bundle states, read once for both documents
glossary      what the names of conditions and metrics mean, for people
limitations   what the evidence does not show
front_matter  YAML at the top of the card, as model hubs read it
model_card    MODEL_CARD.md
bom           bom.cdx.json: CycloneDX ML-BOM
sbom          CycloneDX SBOM of the serving image
monitoring    a page of what became of served versions over time
"""
