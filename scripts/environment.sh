# Sourced by the other scripts: creates .venv with uv, and again whenever pyproject.toml changes.

# uv installs packages without bytecode. It is kept here from the first start on: each start without it takes seconds.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$root/.venv/bytecode"

prepare_environment() {
  local stamp="$root/.venv/.pyproject"
  cmp -s "$root/pyproject.toml" "$stamp" && return
  echo "vitslim: preparing the environment in .venv (once)" >&2
  local uv
  uv=$(find_uv)
  "$uv" venv --quiet --allow-existing --python '>=3.11' "$root/.venv"
  (cd "$root" && install_packages "$uv")
  cp "$root/pyproject.toml" "$stamp"
}

find_uv() {
  command -v uv && return
  local tools="$root/.venv/uv"
  if [ ! -x "$tools/bin/uv" ]; then
    python3 -m venv "$tools" >&2
    "$tools/bin/pip" install --quiet uv >&2
  fi
  echo "$tools/bin/uv"
}

install_packages() {
  local install=("$1" pip install --quiet --python .venv/bin/python --group dev --editable .)
  # The PyTorch build that fits this machine's GPU or, without one, the small CPU build; where its index cannot be
  # reached, the build on PyPI does as well.
  UV_HTTP_RETRIES=0 "${install[@]}" --torch-backend auto 2>/dev/null || "${install[@]}"
}
