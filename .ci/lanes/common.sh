# What the lanes share; source it.

# The newest Python of a minor version that pyenv has, or one that is on the path.
python_of() {
  local found
  found=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python 2>/dev/null | sort -V | tail -1)
  found=${found:-$(command -v "python$1" || true)}
  if [ -z "$found" ]; then
    echo "no Python $1: expected one under pyenv or on the path" >&2
    return 1
  fi
  echo "$found"
}

# Makes a virtual environment DIRECTORY of a minor VERSION of Python, with pip up to date.
make_venv() {  # DIRECTORY VERSION
  local python
  python=$(python_of "$2")
  "$python" -m venv "$1"
  "$1/bin/pip" install --quiet --upgrade pip
}

# Says which versions of what matters most an environment has.
print_versions() {  # DIRECTORY
  "$1/bin/python" -c 'import platform; print("lane-version: python==" + platform.python_version())'
  "$1/bin/pip" freeze |
    grep -E '^(jax|jaxlib|flax|optax|orbax-checkpoint|grain|numpy|libtpu|torch)==' |
    sed 's/^/lane-version: /'
}

# Runs tests with the newest versions of everything, on the newest Python that is tested.
test_newest() {  # MARKERS PATH…
  local markers=$1
  shift
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  make_venv "$work/venv" 3.13
  "$work/venv/bin/pip" install --quiet -e '.[demo,speech,align,parquet,tpu]' pytest \
    pytest-xdist hypothesis
  print_versions "$work/venv"
  JAX_PLATFORMS=cpu "$work/venv/bin/pytest" -m "$markers" "$@"
}
