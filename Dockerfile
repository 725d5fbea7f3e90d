# docker build -t image-similarity .
# docker run --rm -v "$PWD/outputs:/app/outputs" image-similarity
# Data of your own: docker run --rm -v "$PWD/Data:/app/Data" -v "$PWD/config.yml:/app/config.yml" \
#   -v "$PWD/checkpoints:/app/checkpoints" -v "$PWD/outputs:/app/outputs" image-similarity make run DATASET=<name>
FROM python:3.12-slim
# The fonts are for Chinese, Japanese and Korean names in figures.
RUN apt-get update && apt-get install -y --no-install-recommends make fonts-noto-cjk && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt Makefile ./
RUN make .venv/installed
COPY . .
# Copying the rest may give requirements.txt a newer date: it is installed already.
RUN touch .venv/installed
CMD ["make", "run"]
