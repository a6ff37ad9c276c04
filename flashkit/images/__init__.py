"""Images of workers: how they are made, built, looked into, pushed and remembered.

`recipe` says what an endpoint's image is made of and writes the Dockerfile where a project has none; `base` brings the
images that those start from. `docker` is the seam to the docker command, `build_log` reads what it says, `building`
runs a build. `layers` reads an image, `findings` says what to cut. `record` remembers what was built, for deployments.
"""
