#!/usr/bin/env bash
# Everything that a machine with a GPU should run, in two parts meant for ten minutes each (neither has run yet): "tests" (with the sanitizer) and
# "benches"; without arguments both. Figures and logs go to $OUT (results/ unless set).
# Needs torch with CUDA, and what pyproject.toml lists for ganfast and its tests; installs ganfast from this checkout without
# touching them.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-results}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
status=0
parts="${*:-tests benches}"

echo "== build"
python3 -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tail -n 5 || status=1
python3 -m ganfast doctor --verbose | tee "$OUT/doctor.txt" || status=1

if [[ $parts == *tests* ]]; then
echo "== tests on the GPU, with each backend"
for backend in cuda triton reference; do
    GANFAST_CUDA=$backend python3 -m pytest tests/gpu -q 2>&1 | tee "$OUT/gpu-tests-$backend.txt" || status=1
done

echo "== compute-sanitizer"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        GANFAST_CUDA=cuda timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            python3 -m pytest tests/gpu -q -k small_weights 2>&1 | tee "$OUT/$tool.txt" || status=1
    done
    GANFAST_CUDA=triton timeout 120 compute-sanitizer --tool memcheck --error-exitcode 1 \
        python3 -m pytest tests/gpu/test_convolution.py -q -k "products or conv_norm_of_anything" 2>&1 | tee "$OUT/memcheck-triton.txt" || status=1
else
    echo "compute-sanitizer is not installed: races and bad accesses were not looked for" | tee "$OUT/memcheck.txt"
fi
fi

if [[ $parts == *benches* ]]; then
echo "== benches"
python3 -m ganfast bench ops spectral_norm batch_norm conv_norm gather_images generator gradient_penalty critic_step --device cuda --seconds 1 --out "$OUT/ops.csv" || status=1
python3 -m ganfast bench ops penalty_curves --device cuda --seconds 1 --out "$OUT/penalty_curves.csv" || status=1
for table in ops penalty_curves; do
    python3 -m ganfast bench plot "$OUT/$table.csv" "$OUT/$table.png" || status=1
done
timeout 420 python3 -m ganfast bench training --batch 64 --device cuda --seconds 2 --out "$OUT/training.csv" || status=1
python3 benches/recipes.py --device cuda --out "$OUT/recipes.csv" || status=1
fi
exit $status
