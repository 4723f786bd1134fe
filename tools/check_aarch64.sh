#!/bin/sh
# Run the aarch64 wheel, and the tests that need numpy alone, on a machine of another CPU: under
# qemu-user, in a Debian userland for arm64.
#
#     tools/check_aarch64.sh WHEEL FOLDER [TESTS...]
#
# FOLDER gets the userland (600 MB) and is used again where it has one. Needs root (chroot), the
# Debian packages debootstrap and qemu-user-static, which register qemu with the kernel, and pip.
# Debian's Python 3.11 and numpy 1.24, the oldest numpy that the package takes, are what is used.
# HYPOTHESIS_EXAMPLES, 5 by default, says how many examples a property is tried on: emulation
# is slow. PYTHON is whose pip fetches the wheels of pytest and kin.
set -eu

if [ $# -lt 2 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
fi
wheel=$(realpath "$1")
root=$(realpath -m "$2")
shift 2
here=$(realpath "$(dirname "$0")/..")
tests=${*:-"test_codes.py test_search_exact.py test_ranked.py test_file.py test_postings.py \
    test_selection.py test_pursuit.py test_approximate.py"}

if [ ! -x "$root/usr/bin/python3" ]; then
    debootstrap --arch=arm64 --variant=minbase \
        --include=python3,python3-numpy bookworm "$root"
fi
rm -rf "$root/opt/packages" "$root/opt/checked"
mkdir -p "$root/opt/checked/examples"
"${PYTHON:-python3}" -m pip install --quiet --no-deps --root-user-action ignore --target "$root/opt/packages" \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --only-binary=:all: \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
    "$wheel" pytest pluggy iniconfig packaging pygments pytest-timeout hypothesis sortedcontainers \
    xxhash 'scipy<1.12'
cp -r "$here/tests" "$here/pyproject.toml" "$root/opt/checked"
cp -r "$here/examples/data" "$root/opt/checked/examples"

# the wheel, not the sources, and nothing of this machine's Python
exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root PYTHONPATH=/opt/packages \
    HYPOTHESIS_EXAMPLES="${HYPOTHESIS_EXAMPLES:-5}" sh -c '
        set -eu
        cd /opt/checked
        python3 -c "import platform, numpy, sparse_retrieval as sr
print(platform.machine(), sr.__version__, \"numpy\", numpy.__version__)"
        cd tests
        exec python3 -m pytest -q -p no:cacheprovider -c ../pyproject.toml --timeout 3600 "$@"' \
    sh $tests
