# Campaigns of the snapshot store. Sourced by scripts/soak.
# shellcheck shell=bash

campaign_store() {
    local seed=${STRATA_SEED:-$RANDOM}
    STRATA_STORE_OPERATIONS=$(((operations + 99) / 100)) STRATA_SEED=$seed tests_named --test store_model
    STRATA_STORE_CRASHES=$crashes STRATA_SEED=$seed tests_named --test store_crash
    STRATA_STORE_KILLS=$(((kills + 9) / 10)) STRATA_SEED=$seed tests_named --test store_kill
}

campaign_s3() {
    local seed=${STRATA_SEED:-$RANDOM} round
    for ((round = 0; round < (images + 999) / 1000; round++)); do
        STRATA_S3_SEED=$((seed + round)) STRATA_S3_OPERATIONS=400 tests_named --test s3
    done
}
