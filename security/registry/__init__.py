"""Bundles as OCI images and artifacts. Not part of any Bento.

transfer     a bundle out of, and into, either place, in either form
images       the first form: a plain image, one layer with all of it under models/
modelpack    the second: a CNCF ModelPack artifact, its attestations as referrers
client       a registry (distribution-spec v1.1), over https
layout       a folder that is laid out like one (image-spec, image-layout.md)
credentials  logins that `docker login` or `podman login` left
references   what names a place: oci:FOLDER:TAG, REGISTRY/REPOSITORY:TAG
documents    descriptors and manifests, and blobs that are their digest
"""
