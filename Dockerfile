# amex for CPU and CUDA: torch's wheels run on both.
#
#   docker build -t amex .
#   docker run --rm -v "$PWD:/data" amex extract my_videos --store my.zarr
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" amex extract my_videos --store my.zarr
#
# A smaller image without CUDA: --build-arg TORCH="--index-url URL torch torchvision", with the URL that torch's
# installation page gives for CPU wheels. On a cluster see apptainer.def.
FROM python:3.12-slim-bookworm

# The libraries that OpenCV's wheel loads, which comes with MMDetection.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH="torch torchvision"
ARG EXTRAS="all,cluster,s3,export"
RUN pip install --no-cache-dir ${TORCH}
COPY . /tmp/amex
RUN pip install --no-cache-dir "/tmp/amex[${EXTRAS}]" && rm -rf /tmp/amex && amex --version

# Weights that amex downloads; mount a volume here to keep them.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface TORCH_HOME=/cache/torch
VOLUME /cache
WORKDIR /data
ENTRYPOINT ["amex"]
CMD ["--help"]
