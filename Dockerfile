# The image that kuberay.yaml runs: this project on Ray's own image.
FROM rayproject/ray:2.60.0-py311-gpu
WORKDIR /home/ray/coreg_ray
COPY --chown=ray . .
RUN pip install --no-cache-dir -e .
