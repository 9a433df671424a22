# A server of one model, without Prefect and DVC, built from the root of a clone (docs/serving.md).
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 rootstock
WORKDIR /rootstock
# Dependencies first, without the code: a layer of gigabytes that code changes do not invalidate.
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir rootstock \
    && pip install --constraint constraints.txt --editable ".[serve]"
COPY rootstock/ rootstock/
USER 1000
EXPOSE 8000
# The start takes seconds: torch is imported, the engine compiles the network.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "rootstock.model.serving"]
# Beyond loopback the server asks for ROOTSTOCK_TOKEN, and does not start without it.
CMD ["/models/current", "--host", "0.0.0.0", "--port", "8000"]
