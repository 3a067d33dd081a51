# cython: language_level=3, boundscheck=False, wraparound=False
"""An operator in Cython: wheel ticks in, pose out. What it saves are the bytes of a C struct."""

from libc.math cimport cos, sin
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from dora_state cimport Store, ds_change, put_change, save_state_direct

from dora_state import kvs_store

cdef double METERS_PER_TICK = 0.001
cdef double WHEEL_DISTANCE = 0.3

cdef struct Pose:  # written to disk as it is: a field that is added or moved needs a new key
    uint64_t count
    double x
    double y
    double heading


cdef class Operator:
    cdef Pose pose
    cdef double distance
    cdef Store shared

    def __init__(self):
        self.shared = kvs_store()

    def restore_state(self, dict state):
        cdef bytes saved = state["pose"]
        if len(saved) != sizeof(Pose):
            raise ValueError(f"a pose has {sizeof(Pose)} bytes, not {len(saved)}")
        memcpy(&self.pose, <const char *>saved, sizeof(Pose))

    def on_event(self, event, send_output):
        cdef const int64_t[::1] ticks
        if event["type"] == "INPUT":
            ticks = event["value"].to_numpy()
            with nogil:
                self.move(ticks[0] * METERS_PER_TICK, ticks[1] * METERS_PER_TICK)
                self.publish()
            save_state_direct("pose", &self.pose, sizeof(Pose))
            send_output("pose", (<const char *>&self.pose)[:sizeof(Pose)])
        return 0  # DoraStatus.CONTINUE

    cdef void move(self, double left, double right) noexcept nogil:
        self.distance = (left + right) / 2
        self.pose.heading += (right - left) / WHEEL_DISTANCE
        self.pose.x += self.distance * cos(self.pose.heading)
        self.pose.y += self.distance * sin(self.pose.heading)
        self.pose.count += 1

    cdef int publish(self) except -1 nogil:
        """Shows pose and speed to all nodes: one commit, so nobody sees one without the other."""
        cdef ds_change changes[2]
        changes[0] = put_change(b"odometry/pose", 13, &self.pose, sizeof(Pose))
        changes[1] = put_change(b"odometry/step", 13, &self.distance, sizeof(double))
        self.shared.commit_direct(changes, 2)
        return 0
