# What a Cython operator can cimport: docs/cython.md.
from dora_state._core cimport (
    DS_OK,
    Store,
    delete_change,
    ds_change,
    ds_value,
    put_change,
    save_state_direct,
)
