# One image for every process: UI, daemon, and the workers that runs are sent to (docs/scale.md).
#   docker build -t circuits .
#   docker run -p 3000:3000 -v $PWD/artifacts:/circuits/artifacts -v $PWD/data:/circuits/data circuits
# Options of pip, such as the index that has torch's wheels for a GPU: --build-arg PIP_OPTIONS=...
FROM python:3.11-slim

ARG PIP_OPTIONS=""
ARG EXTRAS=""

WORKDIR /circuits
ENV PYTHONUNBUFFERED=1 DAGSTER_HOME=/circuits

# What changes seldom first: a changed line of code then builds in seconds.
COPY requirements.lock ./
RUN pip install --no-cache-dir ${PIP_OPTIONS} -r requirements.lock ${EXTRAS}

COPY pyproject.toml README.md LICENSE dagster.yaml ./
COPY core core
COPY assets assets
COPY pipelines pipelines
COPY explorer explorer
COPY testbed testbed
COPY experiments experiments
RUN pip install --no-cache-dir --no-deps -e .

# Not as root, and able to write what runs make.
RUN useradd --create-home circuits && mkdir -p artifacts data .dagster \
    && chown -R circuits /circuits
USER circuits

EXPOSE 3000
CMD ["python", "-m", "dagster", "dev", "-m", "pipelines.definitions", "--host", "0.0.0.0", "--port", "3000"]
