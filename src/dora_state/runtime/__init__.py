"""The operator runtime: hosts an operator in a child process and brings it back with its state
after a crash.

It works without dora: `supervisor.Supervisor` takes events from a queue and gives outputs to a
callable. `dora_state.dora` is the adapter to a dora node. docs/runtime.md draws the processes and
the state machine.
"""
