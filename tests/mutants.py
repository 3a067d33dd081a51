"""Seeded bugs in the protocol: is there a test that notices each of them?

    python3 tests/mutants.py                 build and test every mutant, print the table, exit 1 if one lives
    python3 tests/mutants.py NAME ...        these only
    python3 tests/mutants.py --list          names and what they break
    python3 tests/mutants.py --check         only see whether every edit still fits the engine's sources
    python3 tests/mutants.py --find NAME ... forget which test is expected to notice, try them all, print what to write below
    cmake -DDORA_STATE_MUTANT=NAME           build the engine with one of them (CMakeLists.txt calls --apply)

A mutant is a replacement of a few lines in csrc, applied to a copy, so that the engine itself carries no scaffolding. One
whose lines are not found exactly once is an error: after a change of the engine it must be looked at again.

Each is built with that option in a build directory of a worker (one per processor), which builds anew only what the mutant
changed, and the test that is expected to notice it (NOTICED_BY). If that one is content, the others are tried.
"""

# ruff: noqa: E501 - the lines of csrc are quoted as they are

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutants"
WORKERS = int(os.environ.get("DORA_STATE_JOBS", str(os.cpu_count() or 1)))
TEST_LIMIT_S = 240

# What is tried when no test is expected to notice, or the expected one does not: quick ones first. Seeds are fixed, so the
# table is too.
TESTS = [
    "test_status",
    "test_store",
    "test_open",
    "test_damage",
    "test_changes",
    "test_wait",
    "test_turn",
    "test_spare",
    "test_keeper",
    "test_sync",
    "test_sigbus",
    "test_repair",
    "test_expiry",
    "test_processes",
    "test_races",
    "test_compaction",
    "test_recovery",
    "test_hostile",
    "every_store 1 1",
    "kill_sweep 150 1 /dev/shm",
    "linearizability 15 4 1 /dev/shm",
    "power_loss 4000 1",
    "bit_flips 1 30 100000",
]
FAULTY = [
    "test_spare",
    "test_keeper",
    "test_faults",
]  # in tests/c/faults, and so linked with an engine whose system calls fail on demand


@dataclass(frozen=True)
class Mutant:
    name: str
    breaks: str
    edits: tuple[tuple[str, str, str], ...]  # file, old lines, new lines


def mutant(name: str, file: str, breaks: str, *edits: tuple[str, str]) -> Mutant:
    return Mutant(name, breaks, tuple((file, old, new) for old, new in edits))


MUTANTS = [
    # ---- a commit, in its order ----------------------------------------------------------------
    mutant(
        "intent-forgotten",
        "append.c",
        "a dead writer's commit is neither finished nor undone",
        ("    atomic_store_explicit(&control->intent.end, end, memory_order_release);\n", ""),
    ),
    mutant(
        "intent-before-its-content",
        "append.c",
        "a death between leaves an intent that describes another commit",
        (
            "    control->intent.begin = begin;\n    ds__tail_store(&control->intent.after, after);\n"
            "    atomic_store_explicit(&control->intent.end, end, memory_order_release);\n",
            "    atomic_store_explicit(&control->intent.end, end, memory_order_release);\n"
            "    control->intent.begin = begin;\n    ds__tail_store(&control->intent.after, after);\n",
        ),
    ),
    # Alone, either is harmless: repair checks the whole frame, which is why it is the double that must be seen.
    Mutant(
        "word0-first-and-believed",
        "a frame exists before it is complete, and repair does not check it",
        (
            (
                "append.c",
                "    uint64_t at = begin + sizeof *frame;\n    for (size_t i = 0; i < count; i++) {\n"
                "        if (!plans[i].write)\n            continue;\n        write_record",
                "    uint64_t at = begin + sizeof *frame;\n    frame->word0 = ds__word0(length, type);\n"
                "    for (size_t i = 0; i < count; i++) {\n"
                "        if (!plans[i].write)\n            continue;\n        write_record",
            ),
            (
                "writer.c",
                " && ds__frame_valid(frame, room, segment->seed, begin, before)))",
                " && ds__frame_well_formed(frame, frame->word0, room) && before != 1))",
            ),
        ),
    ),
    mutant(
        "committed-before-the-index",
        "append.c",
        "the commit point is passed while slots still name old records",
        (
            "    at = begin + sizeof *frame;\n    for (size_t i = 0; i < count; i++) {\n"
            "        if (!plans[i].write || plans[i].op == DS_RECORD_START)",
            "    atomic_store_explicit(&control->committed, end, memory_order_release);\n"
            "    at = begin + sizeof *frame;\n    for (size_t i = 0; i < count; i++) {\n"
            "        if (!plans[i].write || plans[i].op == DS_RECORD_START)",
        ),
    ),
    mutant(
        "tail-before-committed",
        "append.c",
        "a death between makes repair undo a commit that the tail already counts",
        (
            "    atomic_store_explicit(&control->committed, end, memory_order_release);\n"
            "    ds__tail_store(&control->tail, after);\n",
            "    ds__tail_store(&control->tail, after);\n"
            "    atomic_store_explicit(&control->committed, end, memory_order_release);\n",
        ),
    ),
    mutant(
        "intent-cleared-before-the-tail",
        "append.c",
        "a death between leaves a tail that points before the last commit",
        (
            "    ds__tail_store(&control->tail, after);\n"
            "    atomic_store_explicit(&control->intent.end, 0, memory_order_release);\n",
            "    atomic_store_explicit(&control->intent.end, 0, memory_order_release);\n"
            "    ds__tail_store(&control->tail, after);\n",
        ),
    ),
    mutant(
        "commit-point-a-frame-late",
        "append.c",
        "a write that has returned is not seen by others",
        (
            "    atomic_store_explicit(&control->committed, end, memory_order_release);\n    ds__tail_store",
            "    atomic_store_explicit(&control->committed, begin, memory_order_release);\n    ds__tail_store",
        ),
    ),
    mutant(
        "crc-of-the-tail-not-kept",
        "append.c",
        "the next frame is chained to the wrong predecessor",
        ("    after->crc = frame->crc;\n", ""),
    ),
    mutant(
        "sequence-not-advanced",
        "append.c",
        "two commits have one sequence",
        ("control->tail.sequence + (type == DS_FRAME_COMMIT);", "control->tail.sequence;"),
    ),
    mutant(
        "delete-empties-the-slot",
        "append.c",
        "probes for other keys end at the hole",
        (
            "ds__index_set(index, plans[i].slot, ds__slot(at, plans[i].hash));",
            "ds__index_set(index, plans[i].slot,\n"
            "                          plans[i].op == DS_RECORD_TOMBSTONE ? 0 : ds__slot(at, plans[i].hash));",
        ),
    ),
    mutant(
        "batch-uses-the-first-empty-slot",
        "append.c",
        "two new keys of a batch that probe to one slot overwrite each other",
        ("        if (records == 1 ||", "        if (records >= 1 ||"),
    ),
    mutant(
        "sealed-tail-ignored",
        "append.c",
        "a frame follows torn bytes",
        ("    return !tail->sealed && length", "    return length"),
    ),
    mutant(
        "hash-before-the-value",
        "append.c",
        "the record's hash does not cover what is stored",
        (
            "    header.hash = ds__record_hash(record_seed, record, plan->length);",
            "    header.hash = ds__record_hash(record_seed, record, sizeof *record);",
        ),
    ),
    # ---- files that are cut under a handle -----------------------------------------------------
    mutant(
        "cut-index-believed",
        "read.c",
        "a slot in the cut part of the index is taken for a missing key",
        ("        (void)ds__sigbus_cut(index->bytes, index->size);", "        (void)index;"),
    ),
    mutant(
        "cut-value-believed",
        "read.c",
        "a large value of a cut file is returned as zeros",
        (
            "if (ds__sigbus_cut(found->segment->mapping.bytes, found->segment->mapping.size) &&",
            "if (0 &&",
        ),
    ),
    mutant(
        "cut-segment-written",
        "append.c",
        "a commit into a cut segment returns as if it were safe",
        ("if (ds__sigbus_cut(segment->mapping.bytes, segment->mapping.size))", "if (0)"),
    ),
    mutant(
        "faults-of-others-swallowed",
        "sigbus.c",
        "a fault outside of the store is not passed on",
        ("        pass_on(number, info, context);", "        _exit(0);"),
    ),
    # ---- repair --------------------------------------------------------------------------------
    mutant(
        "repair-skipped",
        "writer.c",
        "the next writer overwrites or forgets what a dead one left",
        (
            "if (atomic_load_explicit(&store->control->intent.end, memory_order_relaxed) != 0)",
            "if (false)",
        ),
    ),
    mutant(
        "repair-always-undoes",
        "writer.c",
        "a commit past its commit point is taken back",
        ("    if (done ||\n", "    if (false && done &&\n"),
    ),
    mutant(
        "repair-believes-word0",
        "writer.c",
        "a frame that is not complete is finished",
        (
            " && ds__frame_valid(frame, room, segment->seed, begin, before)))",
            " || frame->count > 0))",
        ),
    ),
    mutant(
        "repair-clears-the-intent-first",
        "writer.c",
        "a repairer that dies leaves half a repair for ever",
        (
            "    const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, begin);\n"
            "    bool done",
            "    const struct ds_frame *frame = (const struct ds_frame *)(const void *)ds__segment_at(segment, begin);\n"
            "    atomic_store_explicit(&control->intent.end, 0, memory_order_release);\n"
            "    bool done",
        ),
    ),
    mutant(
        "finish-forgets-the-index",
        "writer.c",
        "keys of a repaired commit keep their old values",
        (
            "        if (record->op != DS_RECORD_START)\n            ds__index_apply",
            "        if (false)\n            ds__index_apply",
        ),
    ),
    mutant(
        "finish-forgets-the-tail",
        "writer.c",
        "the next commit overwrites a repaired one",
        ("    ds__tail_store(&control->tail, &control->intent.after);\n", ""),
    ),
    mutant(
        "finish-forgets-the-crc",
        "writer.c",
        "the frame after a repaired one has the wrong predecessor",
        ("    control->intent.after.crc = frame->crc;\n", ""),
    ),
    mutant(
        "undo-leaves-torn-bytes",
        "writer.c",
        "a shorter next frame leaves a dead writer's bytes where the next word0 is looked for",
        ("        memset(ds__segment_at(segment, begin), 0, torn);\n", "        ;\n"),
    ),
    mutant(
        "undo-forgets-the-new-segment",
        "writer.c",
        "the segment of an undone commit is made twice",
        (
            "    if (begin == segment->base + DS_SEGMENT_HEADER) {\n        /* Whether",
            "    if (false) {\n        /* Whether",
        ),
    ),
    # ---- reading -------------------------------------------------------------------------------
    mutant(
        "no-stepping-back",
        "read.c",
        "readers see half a commit",
        ("    while (found->offset >= limit) {", "    while (false) {"),
    ),
    mutant(
        "segment-looked-for-once",
        "read.c",
        "a writer finds a segment missing because the start of the log moved on meanwhile",
        (
            "    } while (status == DS_MISSING && now != start && offset >= now);\n",
            "    } while (0);\n",
        ),
    ),
    mutant(
        "old-index-forever",
        "store.h",
        "readers do not notice that the index was replaced",
        (
            "    if (index != NULL && index->generation == generation) {\n        *out = index;\n        return DS_OK;",
            "    if (index != NULL && (index->generation == generation || store->options.read_only)) {\n"
            "        *out = index;\n        return DS_OK;",
        ),
    ),
    # Two tags are the same once in 4,096 probes only; with this hash, always.
    Mutant(
        "key-compared-by-tag",
        "two keys with one tag are one",
        (
            (
                "read.c",
                "        if (ds__record_is(out->record, keyspace, key, key_size)) {",
                "        if (ds__record_is(out->record, keyspace, key, key_size) || key_size > 0) {",
            ),
            (
                "hash.c",
                "    return fold(state ^ seed, K1);",
                "    return 0 * fold(state ^ seed, K1);",
            ),
        ),
    ),
    # The hash differs too, which hides it until two hashes collide.
    Mutant(
        "keyspace-ignored",
        "the runtime's keys and the user's collide",
        (
            (
                "read.c",
                "record->key_size == key_size && record->keyspace == keyspace &&",
                "record->key_size == key_size && keyspace < 255 &&",
            ),
            ("hash.c", "(K0 * (keyspace + UINT64_C(1)))", "(K0 * (0 * keyspace + UINT64_C(1)))"),
        ),
    ),
    mutant(
        "record-unchecked-on-read",
        "read.c",
        "a flipped bit gives a wrong value",
        (
            "    bool small = ds__record_length(record->key_size, record->value_size) < DS_WIDE_HASH_FROM;",
            "    bool small = false;",
        ),
    ),
    mutant(
        "scan-ignores-what-is-shed",
        "read.c",
        "a scan misses a key that was deleted and put anew behind its back",
        (
            "           atomic_load_explicit(&control->shed, memory_order_acquire) > moment->limit ||\n",
            "",
        ),
    ),
    # ---- keys that expire ----------------------------------------------------------------------
    mutant(
        "scan-ignores-what-has-expired",
        "read.c",
        "a scan tells a key that was overwritten together with the absence of one that expired later",
        (
            " ||\n           atomic_load_explicit(&control->shed_expired, memory_order_acquire) != moment->shed_expired;",
            ";",
        ),
    ),
    mutant(
        "clock-after-the-slot",
        "read.c",
        "a key that is renewed in time is missing for a reader that was slow",
        (
            "        *now = ds__clock_now(store->control);\n        *gone = true;\n        return DS_OK;\n",
            "        *now = ds__clock_now(store->control);\n",
        ),
    ),
    mutant(
        "clock-and-log-at-two-moments",
        "expiry.c",
        "several keys are seen as they never were together",
        ("        if (limit == out->limit)\n", "        if (limit >= out->limit)\n"),
    ),
    mutant(
        "clock-is-the-wall-clock",
        "expiry.c",
        "a jump of the wall clock brings keys back or kills them",
        (
            "    return control->clock_ns + (ds__os_boot_ns() - control->clock_boot_ns);",
            "    return control->clock_ns > 0 ? ds__os_wall_ns() : ds__os_boot_ns();",
        ),
    ),
    mutant(
        "clock-starts-with-the-wall-clock",
        "expiry.c",
        "a reboot with a wall clock that is behind brings expired keys back",
        ("    if (latest->written == 0)\n", "    if (latest->written != 1)\n"),
    ),
    mutant(
        "time-that-is-set-counts-as-passed",
        "expiry.c",
        "a board whose wall clock is set after each boot loses keys at the next",
        (" - (int64_t)latest->wall_ahead_s * NS_PER_S;", ";"),
    ),
    mutant(
        "turn-taken-from-its-owner",
        "turn.c",
        "two have a turn at once, and outrun each other as before",
        ("    if (!free || !atomic", "    if ((free, false) || !atomic"),
    ),
    mutant(
        "turn-of-the-dead-lasts",
        "turn.c",
        "an owner that is killed stops the updates of its key for ever",
        (
            "    return now < until && until - now <= ",
            "    return now < now + until && now - now <= ",
        ),
    ),
    mutant(
        "turn-of-any-length",
        "turn.c",
        "a wrong deadline stops the updates of its key for weeks",
        ("    return now < until && until - now <= ", "    return now < until && now - now <= "),
    ),
    mutant(
        "turn-ended-by-anybody",
        "turn.c",
        "who was slow ends the turn of the next one",
        (
            "(&store->control->turn, &token, 0)",
            "(&store->control->turn, &(uint32_t){store->control->turn}, 0)",
        ),
    ),
    mutant(
        "turn-ended-in-silence",
        "turn.c",
        "who waits for a turn sleeps on after its end",
        ("        ds__os_futex_wake(&store->control->turn);\n", "        ;\n"),
    ),
    mutant(
        "turn-never-given-back",
        "turn.c",
        "a turn lasts as long as it was asked for, however soon its owner has written",
        (
            "    if (token == 0 || ds__check(store) != DS_OK)",
            "    if (token != 0 || ds__check(store) != DS_OK)",
        ),
    ),
    mutant(
        "turn-waited-for-awake",
        "turn.c",
        "who waits for a turn takes a processor from its owner",
        (
            "        ds__os_futex_wait(&control->turn, present, left < LOOK_AGAIN_NS ? left : LOOK_AGAIN_NS);\n",
            "        (void)left;\n",
        ),
    ),
    mutant(
        "turn-looked-at-rarely",
        "turn.c",
        "a lost wake, or a note that was half written, costs the whole turn",
        ("left < LOOK_AGAIN_NS ? left : LOOK_AGAIN_NS", "left"),
    ),
    mutant(
        "turn-at-any-key",
        "turn.c",
        "updates of other keys wait too",
        (
            " || named != ds__hash(store->hash_seed, keyspace, key, key_size))",
            " || (named, keyspace, key, key_size, false))",
        ),
    ),
    mutant(
        "turn-waited-for-by-its-owner",
        "turn.c",
        "who has the turn waits for itself",
        (" != 0 && present != token) {", " != 0 && present != token + 1) {"),
    ),
    mutant(
        "wall-ahead-rounded-up",
        "expiry.c",
        "what expired in the last second before a reboot comes back",
        ("    return ahead / NS_PER_S - below;", "    return ahead / NS_PER_S - below + 1;"),
    ),
    mutant(
        "boot-clock-read-after-the-wall-clock",
        "expiry.c",
        "an opener that is stopped between two clocks turns the store's clock back",
        (
            "    control->clock_boot_ns = ds__os_boot_ns(); /* first, see above */\n"
            "    uint64_t wall = ds__os_wall_ns();\n",
            "    uint64_t wall = ds__os_wall_ns();\n"
            "    control->clock_boot_ns = ds__os_boot_ns();\n",
        ),
    ),
    mutant(
        "expiry-not-moved",
        "relocation.c",
        "a key that compaction has moved has lost its deadline",
        ("        plan.expiry = ds__record_expiry(record);", "        plan.expiry.written = 0;"),
    ),
    mutant(
        "expired-slot-kept",
        "relocation.c",
        "the index names a record that is dropped",
        (
            "        if (plan->op != DS_RECORD_TOMBSTONE && plan->replaced_bytes == 0)\n",
            "        if (plan->op != DS_RECORD_TOMBSTONE)\n",
        ),
    ),
    mutant(
        "expired-never-reclaimed",
        "append.c",
        "keys that are put once, with a time to live, fill the disk",
        ("&& (header.incompat & DS_EXPIRY_INCOMPAT) != 0)", "&& header.incompat == 0)"),
    ),
    mutant(
        "overwritten-expired-not-counted",
        "commit.c",
        "bytes of a key that expired and was put again are counted twice",
        (
            "known && found.record->op != DS_RECORD_TOMBSTONE ? ds__live_size",
            "sequence != 0 ? ds__live_size",
        ),
    ),
    mutant(
        "no-segment-for-expiring-records",
        "append.c",
        "an older build opens the store and takes the end of the log for torn",
        ("    if (!expires(plans, count))\n", "    if (count > 0)\n"),
    ),
    mutant(
        "expiry-believed-unchecked",
        "expiry.c",
        "a flipped bit in the deadline of a large value makes it vanish",
        ("    if (!sound || expiry.crc != ds__expiry_crc(&expiry))\n", "    if (!sound)\n"),
    ),
    mutant(
        "conditional-put-ignores-expiry",
        "commit.c",
        "a claim that has expired cannot be made again",
        ("    *sequence = expired || found", "    *sequence = found"),
    ),
    mutant(
        "search-from-the-last-mapped",
        "segment.c",
        "a reader that fell behind never finds the log again",
        ("    if (segment == NULL || segment->end <= start)", "    if (segment == NULL)"),
    ),
    mutant(
        "writer-unmapped-under-its-feet",
        "segment.c",
        "a reader unmaps the segment that a writer of its handle is looking at",
        (
            "           atomic_load_explicit(&segments->writing, memory_order_seq_cst) == 0;",
            "           segments->writing <= 1;",
        ),
    ),
    # ---- waiting: a waiter that looks again each second hides these from whoever is patient ---------
    mutant(
        "wake-forgotten",
        "wait.c",
        "who waits for a key learns of a commit a second late",
        ("            wake(word_of(control, plans[i].hash));", "            (void)word_of;"),
    ),
    mutant(
        "wake-of-prefixes-forgotten",
        "wait.c",
        "who waits for a prefix learns of a commit a second late",
        (
            "            wake(word_of(control, plans[i].hash));\n    wake(&control->wake_prefix);",
            "            wake(word_of(control, plans[i].hash));",
        ),
    ),
    mutant(
        "wake-does-not-move-the-word",
        "wait.c",
        "a commit between the look and the sleep wakes nobody",
        ("    atomic_fetch_add_explicit(word, 1, memory_order_relaxed);\n", ""),
    ),
    mutant(
        "waiter-looks-before-it-is-seen",
        "wait.c",
        "a commit between the look and the sleep wakes nobody",
        (
            "        uint32_t seen = can_sleep ? atomic_fetch_or_explicit(word, 1, memory_order_seq_cst) | 1 : 0;\n",
            "",
        ),
        (
            "        if (can_sleep)\n",
            "        uint32_t seen = can_sleep ? atomic_fetch_or_explicit(word, 1, memory_order_seq_cst) | 1 : 0;\n"
            "        if (can_sleep)\n",
        ),
    ),
    # ---- the next segment, made ahead -------------------------------------------------------------
    mutant(
        "spare-replaces-what-is-there",
        "spare.c",
        "whoever finds the name of the next segment taken goes on without a segment",
        (
            "                ds__os_link_unnamed(&store->directory, spare->fd, name) == DS_OK;",
            "                (ds__os_link_unnamed(&store->directory, spare->fd, name), true);",
        ),
    ),
    mutant(
        "spare-with-a-header-of-another-size",
        "spare.c",
        "a segment's header says another size than its file has",
        ("        header->size = size;\n", ""),
    ),
    mutant(
        "spare-kept-on-a-full-disk",
        "spare.c",
        "what nobody needs is in the way of deletes and of compaction",
        ("    atomic_store_explicit(&store->no_spares, true, memory_order_seq_cst);\n", ""),
    ),
    mutant(
        "spare-far-too-large-is-taken",
        "spare.c",
        "a small store keeps the segments of a large one",
        ("size >= header->size && size / 2 <= header->size;", "size >= header->size;"),
    ),
    mutant(
        "spare-leaks-its-descriptor",
        "spare.c",
        "each segment costs a descriptor",
        ("    ds__os_close(spare->fd);\n", ""),
    ),
    # ---- when something fails -------------------------------------------------------------------
    mutant(
        "any-failure-is-the-disk's",
        "sync.c",
        "a process without descriptors spoils the store for all",
        ("status == DS_IO && error != EMFILE && error != ENFILE", "status == DS_IO && error != 0"),
    ),
    mutant(
        "large-value-gone-after-damage",
        "commit.c",
        "a commit that a rebuild finds whole names a file that is not there",
        (
            "    if (status != DS_OK && status != DS_CORRUPT && outline->blobs)",
            "    if (status != DS_OK && outline->blobs)",
        ),
    ),
    mutant(
        "doomed-before-it-is-dead",
        "compaction.c",
        "compaction removes the file of a key that it failed to give up",
        ("            pass->blob_count = doomed;", "            (void)doomed;"),
    ),
    mutant(
        "half-a-scan",
        "cursor.c",
        "a scan without its segments",
        ("gone && (status == DS_OK || status == DS_MISSING)", "gone && status == DS_MISSING"),
    ),
    mutant(
        "not-seen-to-be-in-use",
        "repair.c",
        "a store is replaced under those who have it open",
        (
            "    if (status == DS_MISSING || status == DS_NOT_A_STORE ||",
            "    if (status != DS_OK ||",
        ),
    ),
    # ---- checksums -----------------------------------------------------------------------------
    mutant(
        "record-hash-skipped",
        "format.c",
        "recovery accepts damaged values",
        (
            "        if (!ds__record_valid(seed, offset + at, record, length))\n            return false;\n",
            "        (void)seed, (void)offset;\n",
        ),
    ),
    mutant(
        "frame-crc-skipped",
        "format.c",
        "recovery accepts a frame of another place or history",
        (
            "    if (ds__frame_crc(seed, offset, before, word0, frame) != frame->crc)\n        return false;\n",
            "",
        ),
    ),
    mutant(
        "predecessor-not-in-the-crc",
        "format.c",
        "a frame may follow any other",
        (
            "(uint64_t)frame->count << 32 | before};",
            "(uint64_t)frame->count << 32 | 0 * before};",
        ),
    ),
    mutant(
        "segment-link-ignores-the-crc",
        "log.c",
        "a segment of another history is followed",
        (
            "           header->before_end == end->offset && header->before_crc == end->crc &&",
            "           header->before_end == end->offset &&",
        ),
    ),
    mutant(
        "sequence-instead-of-offset",
        "format.c",
        "a frame is valid wherever its sequence fits",
        (
            "    uint64_t head[4] = {offset, word0, frame->sequence, (uint64_t)frame->count << 32 | before};",
            "    uint64_t head[4] = {0 * offset, word0, frame->sequence, (uint64_t)frame->count << 32 | 0 * before};",
        ),
    ),
    # ---- recovery from the log -------------------------------------------------------------------
    mutant(
        "tombstone-forgotten",
        "rebuild.c",
        "deleted keys come back at a reboot",
        (
            "    struct ds_tail *tail = &rebuild->tail;\n    if (tail->slots_used + 1",
            "    struct ds_tail *tail = &rebuild->tail;\n    if (record->op == DS_RECORD_TOMBSTONE)\n        return DS_OK;\n"
            "    if (tail->slots_used + 1",
        ),
    ),
    mutant(
        "first-version-wins",
        "rebuild.c",
        "a reboot brings old values back",
        ("        ds__index_set(rebuild->index, found.slot, ds__slot(offset, hash));", "        ;"),
    ),
    mutant(
        "floor-ignored",
        "rebuild.c",
        "damage to synced data passes for a torn end",
        (
            "    if (sensible < floor->offset || end->segment == NULL)",
            "    if (end->segment == NULL)",
        ),
    ),
    mutant(
        "sequence-accepted-twice",
        "log.c",
        "a commit whose sequence was given out before is read as a new one",
        (
            " ||\n            frame->sequence < end->sequence ||\n"
            "            (frame->sequence == end->sequence && ds__frame_type(frame->word0) == DS_FRAME_COMMIT)) {",
            ") {",
        ),
    ),
    mutant(
        "start-without-its-head",
        "rebuild.c",
        "the log begins where a HEAD says that was lost with a large value, and what was synced before that is gone",
        (
            "        bool may = may_begin(files, end);\n",
            "        bool may = limit != UINT64_MAX || may_begin(files, end);\n",
        ),
    ),
    mutant(
        "later-start-only-if-whole",
        "rebuild.c",
        "a power loss in a compaction that tears both ends of the log takes back what was synced",
        ("    files->first = best;\n", "    files->first = first;\n"),
    ),
    mutant(
        "page-made-anew-forgets-failed-sync",
        "recovery.c",
        "a store whose sync failed and that moves to another container is called synced, though its pages were not written",
        ("    if (!rebooted && files->count > 0)\n", "    if (!rebooted && files->count == 0)\n"),
    ),
    mutant(
        "replaced-blob-swept-before-sync",
        "recovery.c",
        "a power loss after a recovery in the same boot takes a large value that was synced, and leaves its record",
        ("(rebooted || ds__sync(store, false) == DS_OK)", "(rebooted || !rebooted)"),
    ),
    mutant(
        "half-made-index-in-force",
        "recovery.c",
        "who dies in a recovery from a lost index leaves an empty one that the old control page names: all keys are missing",
        (
            "        if (files->newest_generation < lost)\n",
            "        if (files->newest_generation > lost)\n",
        ),
    ),
    mutant(
        "unused-segment-hides-damage",
        "rebuild.c",
        "where a killed writer left a segment that it had not used, synced commits before it may be damaged and silently missing",
        (
            "    return next != NULL ? ds__segment_header(next)->before_end : end->offset;\n",
            "    return end->offset;\n",
        ),
    ),
    mutant(
        "unused-segment-hides-damage-from-repair",
        "salvage.c",
        "a repair does not say that such commits are lost",
        ("    last = last || floor < scan->piece->end;\n", ""),
    ),
    mutant(
        "first-start-with-a-head",
        "rebuild.c",
        "a start that a killed compaction has told hides the next one's behind torn segments, and what was synced since is gone",
        (
            "        if (may)\n            best = at;\n",
            "        if (may && best > last)\n            best = at;\n",
        ),
    ),
    mutant(
        "torn-end-not-sealed",
        "rebuild.c",
        "commits follow torn bytes",
        ("    tail->sealed = end.torn;", "    tail->sealed = 0;"),
    ),
    mutant(
        "dropped-frames-come-back",
        "log.c",
        "frames behind the end that a recovery has set are read by the next one",
        (
            "    return offset >= next->before_end && frame->sequence < next->before_sequence;",
            "    return false && next == NULL && offset == 0 && frame == NULL;",
        ),
    ),
    mutant(
        "unused-segment-ends-the-log",
        "log.c",
        "a writer that dies before it uses its new segment takes back what others commit before it",
        (" && frame->sequence < next->before_sequence;", " && frame != NULL;"),
    ),
    mutant(
        "moved-frames-beside-an-unused-segment",
        "log.c",
        "a writer that dies before it uses its new segment takes back what compaction moves before it",
        ("frame->sequence < next->before_sequence", "frame->sequence <= next->before_sequence"),
    ),
    mutant(
        "unused-segment-is-torn",
        "log.c",
        "what a writer left that it never used counts as lost",
        ("header->before_end < end->offset && header", "false && header"),
    ),
    mutant(
        "repair-believes-an-unused-segment",
        "salvage.c",
        "a repair takes back what was committed beside a segment that was never used",
        (
            "            frame->sequence >= before_sequence)\n            return true;",
            "            frame->sequence >= before_sequence)\n            return false;",
        ),
    ),
    mutant(
        "dead-bytes-not-counted",
        "rebuild.c",
        "a zeroed sector passes for a clean end",
        (
            "    uint64_t dead = count_dead(end->segment, end->offset);",
            "    uint64_t dead = 0 * count_dead(end->segment, end->offset);",
        ),
    ),
    mutant(
        "no-sequence-gap",
        "rebuild.c",
        "a sequence is given out twice after a power loss",
        (
            "tail->sequence = clean ? sequence : sequence + DS_SEQUENCE_GAP;",
            "tail->sequence = clean ? sequence : sequence;",
        ),
    ),
    mutant(
        "version-ignored",
        "segment.c",
        "a future format is opened",
        (
            "    if (header->version != DS_FORMAT_VERSION || (header->incompat",
            "    if ((header->incompat",
        ),
    ),
    mutant(
        "another-boot-is-this-one",
        "os_machine.c",
        "a control page of an earlier boot is believed",
        ("        strncpy(out, fake, 36);\n", "        (void)fake;\n"),
    ),
    mutant(
        "any-control-page-is-believed",
        "recovery.c",
        "a copy, or another container, uses a lock whose owner it cannot know",
        (
            "    if (memcmp(found, &expected, sizeof expected) == 0) {",
            "    if (memcmp(found->uuid, expected.uuid, sizeof expected.uuid) == 0) {",
        ),
    ),
    mutant(
        "blobs-all-swept",
        "rebuild.c",
        "a recovery removes large values that are committed",
        (
            "bsearch(&blob.id, sweep->live, sweep->count, sizeof blob.id, by_number) == NULL)",
            "bsearch(&blob.id, sweep->live, 1, sizeof blob.id, by_number) == NULL)",
        ),
    ),
    mutant(
        "lost-index-stays-lost",
        "recovery.c",
        "a damaged index makes a store unreadable until the next reboot",
        (
            "        if (!index_is_lost(store, fd, control))",
            "        if (true || !index_is_lost(store, fd, control))",
        ),
    ),
    mutant(
        "synced-below-the-start",
        "recovery.c",
        "after a power loss in a compaction every sync looks for a segment that is gone",
        ("    if (synced < rebuild->start) /*", "    if (false) /*"),
    ),
    mutant(
        "repair-trusts-the-commit-point",
        "writer.c",
        "a scribbled control page leads a repair out of the frame",
        (
            "done && !ds__frame_well_formed(frame, frame->word0, room)",
            "done && frame == NULL && !ds__frame_well_formed(frame, frame->word0, room)",
        ),
    ),
    mutant(
        "tail-believed",
        "append.c",
        "a scribbled control page leads a writer out of the segment",
        (
            "    if (tail->offset % 8 != 0 || tail->offset < segment",
            "    if (false && tail->offset < segment",
        ),
    ),
    # ---- index growth ----------------------------------------------------------------------------
    mutant(
        "index-published-empty",
        "growth.c",
        "keys are missing while, or if it dies, the writer copies the index",
        (
            "    uint64_t used = 0;\n    status = copy_slots(store, index, next, &used);",
            "    uint64_t used = 0;\n"
            "    atomic_store_explicit(&control->generation, next->generation, memory_order_release);\n"
            "    status = copy_slots(store, index, next, &used);",
        ),
    ),
    mutant(
        "index-growth-loses-a-slot",
        "growth.c",
        "a key is missing after the index grew",
        (
            "    for (uint64_t at = 0; at <= from->mask; at++) {",
            "    for (uint64_t at = 0; at < from->mask - 40; at++) {",
        ),
    ),
    mutant(
        "replaced-index-stays-mapped",
        "read.c",
        "a process that puts and deletes takes more memory and disk, as long as it lives",
        ("    if (replaced)\n        reclaim_indexes(store);", "    (void)reclaim_indexes;"),
    ),
    # ---- compaction and sync -----------------------------------------------------------------------
    mutant(
        "compaction-never-overdue",
        "compaction.c",
        "puts are faster than the disk, and the log takes all of it",
        (
            "           2 * tail->live_bytes + 4 * size + tail->segment_blobs;",
            "           UINT64_MAX - size - copied;",
        ),
    ),
    mutant(
        "compaction-overdue-two-segments-late",
        "compaction.c",
        "the log takes twice the live data and six segments",
        (
            "           2 * tail->live_bytes + 4 * size + tail->segment_blobs;",
            "           2 * tail->live_bytes + 6 * size + tail->segment_blobs;",
        ),
    ),
    mutant(
        "compaction-overdue-at-four-times",
        "compaction.c",
        "the log takes four times the live data",
        (
            "           2 * tail->live_bytes + 4 * size + tail->segment_blobs;",
            "           4 * tail->live_bytes + 4 * size + tail->segment_blobs;",
        ),
    ),
    mutant(
        "overdue-in-vain",
        "commit.c",
        "a put that finds compaction overdue does not wait for it",
        (
            "    while (status == DS_OK && ds__compaction_overdue(store, outline->bound)) {",
            "    while (status != DS_OK && ds__compaction_overdue(store, outline->bound)) {",
        ),
    ),
    mutant(
        "overdue-overlooked-by-a-try",
        "commit.c",
        "puts that never wait let the log grow",
        (
            "        ds__writer_leave(store);\n        if (at_once) {\n",
            "        if (at_once)\n            break;\n        ds__writer_leave(store);\n        if (at_once) {\n",
        ),
    ),
    mutant(
        "refused-put-asks-nobody",
        "commit.c",
        "a put that never waits is refused for ever",
        ("            ds__keeper_ask(store); /* it may", "            /* it may"),
    ),
    mutant(
        "stopped-compaction-forgotten",
        "commit.c",
        "each put waits for a compaction that is stopped",
        (
            "            atomic_store_explicit(&store->compacting_fails, true, memory_order_relaxed);\n        status",
            "            ;\n        status",
        ),
    ),
    mutant(
        "put-waits-for-all-passes",
        "compaction.c",
        "a put that waits for room goes on waiting when there is some",
        (
            "        status = next_pass(store, how, &until, &moved);\n",
            "        do\n            status = next_pass(store, how, &until, &moved);\n"
            "        while (status == DS_OK && moved && (moved = false, start_of(store) > 0));\n",
        ),
    ),
    mutant(
        "keeper-before-who-waits",
        "lock.c",
        "between two passes a put that waits for room is outrun by the keeper",
        (
            "    if (atomic_exchange_explicit(&lock->starving, 0, memory_order_relaxed) != 0)\n        return DS_OK;\n",
            "",
        ),
    ),
    mutant(
        "dead-is-moved",
        "relocation.c",
        "a key that is overwritten while it is to move gets its old value back",
        ("    plan->write = live && !expired", "    plan->write = !expired"),
    ),
    mutant(
        "batches-without-a-bound",
        "relocation.c",
        "compaction keeps writers waiting for as long as a segment takes",
        (
            " || batch->bytes + length > BATCH_BYTES) {",
            " || batch->bytes + length > UINT32_MAX + (uint64_t)BATCH_BYTES) {",
        ),
    ),
    mutant(
        "slot-given-up-unseen",
        "relocation.c",
        "a key that is put anew while its tombstone goes is missing",
        ("    if (ds__slot_offset(slot) == offset)\n", "    if (slot != offset)\n"),
    ),
    mutant(
        "segment-for-expiring-records-guessed",
        "append.c",
        "where the last segment cannot be looked at, an expiring record lands in one that is not for it",
        (
            "incompat & DS_EXPIRY_INCOMPAT) == 0;\n    return status;",
            "incompat & DS_EXPIRY_INCOMPAT) == 0;\n    return DS_OK;",
        ),
    ),
    mutant(
        "compaction-due-two-segments-late",
        "compaction.c",
        "the keeper begins when puts have to wait already",
        (
            "    SLACK = 2,    /*",
            "    SLACK = 4,    /*",
        ),
    ),
    mutant(
        "failed-compaction-forgotten",
        "keeper.c",
        "what a compaction that failed has left stays until somebody writes",
        ("        if (asked || rested || failed)", "        if (asked || rested)"),
    ),
    mutant(
        "rest-not-used",
        "keeper.c",
        "what a burst has left takes room until somebody writes",
        ("        if (asked || rested || failed)", "        if (asked || failed)"),
    ),
    mutant(
        "rest-not-due-earlier",
        "compaction.c",
        "what a burst has left takes room until somebody writes",
        ("how == DS_COMPACT_DUE ? SLACK : SLACK - 1", "SLACK"),
    ),
    mutant(
        "blob-counted-off-twice",
        "compaction.c",
        "what large values take is counted too low after a pass that was cut short, and compaction comes late",
        (
            "        if (ds__blob_remove(store, &pass->blobs[i]))\n            bytes",
            "        (void)ds__blob_remove(store, &pass->blobs[i]);\n            bytes",
        ),
    ),
    mutant(
        "moved-blob-doomed",
        "relocation.c",
        "the next pass after one that was cut short removes large values that it has moved",
        (
            "!*live && !(status == DS_OK && share_blob(record, found.record));",
            "!*live && !(status == DS_OK && share_blob(record, found.record) && false);",
        ),
    ),
    mutant(
        "compaction-drops-before-the-sync",
        "compaction.c",
        "the power goes, and neither the old segments nor the moved records are there",
        (
            "    if (status == DS_OK)\n        status = ds__sync_between(store, to, end);\n    if (status == DS_OK)\n        status = drop(",
            "    if (status == DS_OK)\n        status = drop(",
        ),
    ),
    mutant(
        "compaction-drops-unread-what-is-named",
        "relocation.c",
        "a segment in which keys still live is dropped as if all of it were dead",
        (
            "    return segment->end <= pass->oldest_named;",
            "    return segment->base <= pass->oldest_named;",
        ),
    ),
    mutant(
        "compaction-forgets-the-last-batch",
        "relocation.c",
        "live records are dropped with their segment",
        (
            "    return status == DS_OK ? flush(pass) : status;",
            "    pass->batch.count = 0;\n    return status == DS_OK ? flush(pass) : status;",
        ),
    ),
    mutant(
        "compaction-without-head",
        "compaction.c",
        "the log does not say where it begins",
        (
            "    ds_status status = append_head(store, to, false, &end);\n",
            "    ds_status status = DS_OK;\n    (void)append_head;\n",
        ),
    ),
    mutant(
        "relocation-gets-a-new-sequence",
        "relocation.c",
        "a key's sequence changes though nobody wrote it",
        (".sequence = record->sequence, .op = record->op}", ".sequence = 0, .op = record->op}"),
    ),
    mutant(
        "directory-not-synced",
        "sync.c",
        "a synced segment has no name after a power loss",
        (
            "    return fresh ? ds__os_directory_sync(&store->directory) : DS_OK;",
            "    (void)fresh;\n    return DS_OK;",
        ),
    ),
    mutant(
        "segments-not-synced",
        "sync.c",
        "the floor says more than is on disk",
        (
            "    if (status == DS_OK)\n        status = sync_segments(store, from, to);\n",
            "    (void)sync_segments;\n",
        ),
    ),
    mutant(
        "segment-header-not-synced",
        "sync.c",
        "a synced segment's header is not on disk",
        (
            "        uint64_t start = at <= segment->base + DS_SEGMENT_HEADER ? segment->base : at;",
            "        uint64_t start = at <= segment->base + DS_SEGMENT_HEADER ? (segment->base + 4096 < stop ? segment->base + 4096 : stop - 1) : at;",
        ),
    ),
    mutant(
        "floor-not-raised",
        "sync.c",
        "damage to what was synced is taken for a torn end",
        (
            "    if (status == DS_OK && (clean || before < to))\n        status = raise_floor",
            "    if (status == DS_OK && before < to && before > to)\n        status = raise_floor",
        ),
    ),
    mutant(
        "clean-floor-not-durable",
        "sync.c",
        "after a power loss a store that was closed is not known to have been",
        (", clean ? DS_FLOOR_CLEAN : 0, clean);", ", clean ? DS_FLOOR_CLEAN : 0, false);"),
    ),
    mutant(
        "clean-floor-before-its-data",
        "sync.c",
        "the power goes in a close, and the floor speaks of what is not on disk",
        (
            "    status = sync_locked(store, start, to);\n    ds__leave(store);\n",
            "    if (clean)\n        (void)raise_floor(store, to, sequence, DS_FLOOR_CLEAN, true);\n    clean = false;\n"
            "    status = sync_locked(store, start, to);\n    ds__leave(store);\n",
        ),
    ),
    mutant(
        "covered-sync-hides-the-error",
        "sync.c",
        "who asks for what an earlier sync covers is not told that the disk has failed",
        (
            " >= to &&\n        atomic_load_explicit(&control->sync_error, memory_order_relaxed) == 0)",
            " >= to)",
        ),
    ),
    mutant(
        "tidy-oldest-first",
        "recovery.c",
        "a recovery that dies leaves a gap between torn segments",
        (
            "    for (size_t i = files->count; status == DS_OK && i-- > rebuild->end.segments;)\n",
            "    for (size_t i = rebuild->end.segments; status == DS_OK && i < files->count; i++)\n",
        ),
    ),
    mutant(
        "leftovers-newest-first",
        "recovery.c",
        "a recovery that dies leaves a gap before the start of the log",
        (
            "    ds_status status = unlink_segments(store, files, 0, files->first);\n",
            "    ds_status status = DS_OK;\n    for (size_t i = files->first; status == DS_OK && i-- > 0;)\n"
            "        status = unlink_segments(store, files, i, i + 1);\n",
        ),
    ),
    mutant(
        "changes-tells-relocations",
        "changes.c",
        "what compaction moved is told as if it had been put again",
        (
            "        if (ds__frame_type(frame->word0) != DS_FRAME_COMMIT ||",
            "        if (ds__frame_type(frame->word0) == DS_FRAME_HEAD ||",
        ),
    ),
    # ---- locks, handles, rules of a commit -----------------------------------------------------------
    mutant(
        "lock-not-robust",
        "lock.c",
        "a dead owner blocks all writers",
        (
            "        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);",
            "        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_STALLED);",
        ),
    ),
    mutant(
        "lock-not-made-consistent",
        "lock.c",
        "after one death the lock is broken for ever",
        ("        pthread_mutex_consistent(&lock->mutex);\n", ""),
    ),
    mutant(
        "keeper-awaited-in-a-child",
        "store.c",
        "a forked child hangs when it drops an inherited handle",
        (
            "    if (store->stamp != ds__os_process_stamp())\n        return;\n    pthread_mutex_destroy",
            "    pthread_mutex_destroy",
        ),
    ),
    mutant(
        "fork-not-noticed",
        "store.c",
        "parent and child share one handle",
        (
            "    if (store->stamp != ds__os_process_stamp())\n        return ds__fail(",
            "    if (false)\n        return ds__fail(",
        ),
    ),
    mutant(
        "fence-ignored",
        "writer.c",
        "an operator that was replaced goes on writing",
        ("store->options.incarnation < fence)", "store->options.incarnation < fence - fence)"),
    ),
    mutant(
        "expectation-ignored",
        "commit.c",
        "compare-and-put always wins",
        ("&& sequence != change->expected)", "&& sequence != change->expected && sequence == 0)"),
    ),
    mutant(
        "first-change-wins",
        "commit.c",
        "a key named twice in a batch takes its first change",
        (
            "    for (size_t i = count; i-- > 0;) {\n        if (changes[i].kind == DS_EXPECT)",
            "    for (size_t i = 0; i < count; i++) {\n        if (changes[i].kind == DS_EXPECT)",
        ),
    ),
    # ---- one for each promise that had none ------------------------------------------------------
    mutant(
        "lock-stolen",
        "lock.c",
        "two writers are in a commit at once when one of them was stopped (I4)",
        (
            "    if (error == ETIMEDOUT)\n        return ds__fail(DS_TIMEOUT",
            "    if (error == ETIMEDOUT)\n        return DS_OK;\n    if (error == ETIMEDOUT)\n        return ds__fail(DS_TIMEOUT",
        ),
    ),
    mutant(
        "sync-error-forgotten",
        "sync.c",
        "a sync succeeds over pages that an earlier one has lost (I10)",
        (
            "atomic_store_explicit(&control->sync_error, ds_error_errno() ? ds_error_errno() : EIO, memory_order_relaxed);",
            "(void)disk_failed;",
        ),
    ),
    mutant(
        "failed-segment-dropped",
        "compaction.c",
        "what a compaction could not move goes all the same (I19)",
        (
            "        if (status != DS_OK)\n            return status;\n        to = segment->end;\n",
            "        if (status != DS_OK && segment == NULL)\n            return status;\n        to = segment->end;\n",
        ),
    ),
    mutant(
        "moves-take-the-reserve",
        "append.c",
        "on a full disk a compaction that frees nothing takes the reserve from deletes",
        (
            "        return type == DS_FRAME_HEAD || store->tight;",
            "        return type != 0 && store != NULL;",
        ),
    ),
    mutant(
        "moves-take-the-last-room",
        "relocation.c",
        "on a full disk a compaction that frees nothing takes what the reserve has left from deletes",
        (" && !pass->tight && reserve_gone(store))", " && !pass->tight && false)"),
    ),
    mutant(
        "reserve-not-for-what-lives",
        "relocation.c",
        "on a full disk a segment that is nearly dead stays, though the reserve takes what lives in it",
        ("        reserve /= 2;", "        reserve = 0;"),
    ),
    mutant(
        "reserve-all-for-what-lives",
        "relocation.c",
        "on a full disk what lives takes all of the reserve from deletes",
        ("        reserve /= 2;", "        reserve /= 1;"),
    ),
    mutant(
        "full-disk-not-tight",
        "compaction.c",
        "on a full disk the keeper frees nothing, though much is dead",
        (
            "    return status == DS_FULL ? one_pass(store, 0, true, moved) : status;",
            "    return status;",
        ),
    ),
    mutant(
        "room-not-waited-for",
        "compaction.c",
        "a full disk refuses what another thread is just making room for",
        ("    if (how == DS_COMPACT_TIGHTLY)\n        ds__reclaim_all(store);\n", ""),
    ),
    mutant(
        "reserve-not-used",
        "append.c",
        "on a full disk not even a delete works (I20)",
        (
            "        bool made = ds__segment_from_reserve(&store->segments, header, out) == DS_OK;\n",
            "        bool made = false;\n",
        ),
    ),
    mutant(
        "unused-segment-takes-the-room",
        "append.c",
        "on a full disk a writer that dies where it has made a segment of the reserve leaves no room for deletes",
        (
            "        if (made || replace_unused(store, header, out) == DS_OK)\n",
            "        if (made || (replace_unused(store, header, out), false))\n",
        ),
    ),
    mutant(
        "reserve-noted-before-it-goes",
        "append.c",
        "on a full disk a writer that dies between the two leaves a reserve that nobody uses",
        (
            "    if (status == DS_FULL && frees && smallest == DS_SEGMENT_MIN) {\n",
            "    if (status == DS_FULL && frees && smallest == DS_SEGMENT_MIN && *reserve_gone == 0) {\n",
        ),
    ),
    mutant(
        "descriptor-leaked",
        "os.c",
        "each file that cannot be looked at costs a descriptor (I21)",
        (
            "    if (status != DS_OK) {\n        close(opened);\n        return status;\n    }\n    *fd = opened;",
            "    if (status != DS_OK)\n        return status;\n    *fd = opened;",
        ),
    ),
    mutant(
        "reserve-made-by-a-reader",
        "recovery.c",
        "a read-only open makes a file (I22)",
        (
            "    if (status == DS_OK && !store->options.read_only && !files.reserve)\n",
            "    if (status == DS_OK && !files.reserve)\n",
        ),
    ),
    mutant(
        "sizes-believed",
        "format.c",
        "a hostile log leads a reader out of the segment (I27)",
        (
            "        if (record->key_size > DS_KEY_LIMIT || record->value_size > left)\n            return false;\n"
            "        if (DS_ALIGN((uint64_t)record->key_size) + DS_ALIGN(record->value_size) > left)\n            return false;\n",
            "",
        ),
    ),
    mutant(
        "value-not-pinned",
        "read.c",
        "a view that lives is unmapped by compaction (I37)",
        (
            "        ds__mapping_pin(&found->segment->mapping);\n        out->owner",
            "        out->owner",
        ),
    ),
    mutant(
        "segment-of-fewer-commits-followed",
        "log.c",
        "a log goes on in a segment that knows of fewer commits than there were (I8)",
        (
            "           header->before_sequence >= end->sequence;",
            "           header->before_sequence + 1 > 0;",
        ),
    ),
    # ---- files ---------------------------------------------------------------------------------
    mutant(
        "links-followed",
        "os.c",
        "a symbolic link in the directory leads the store to another file",
        ("O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK |", "O_CLOEXEC | O_NONBLOCK |"),
    ),
    mutant(
        "links-written-through",
        "os.c",
        "a new file is made where a symbolic link leads",
        ("O_CLOEXEC | O_RDWR | O_CREAT | O_EXCL;", "O_CLOEXEC | O_RDWR | O_CREAT | O_TRUNC;"),
    ),
    mutant(
        "files-of-others-taken",
        "os.c",
        "somebody else's file becomes part of the store",
        (
            "    if (info.stx_uid != directory->owner && info.stx_uid != geteuid() && info.stx_uid != 0)",
            "    if (false)",
        ),
    ),
    mutant(
        "blob-length-32-bit",
        "blob.c",
        "of a value of more than 4 GiB only the rest is kept",
        (
            "struct ds_blob_reference reference = {.size = size};",
            "struct ds_blob_reference reference = {.size = (uint32_t)size};",
        ),
    ),
    mutant(
        "standard-streams-taken",
        "os.c",
        "what a library prints is written into a store's file",
        ("    if (fd < 0 || fd > 2)", "    if (fd < 3 || fd > 2)"),
    ),
    mutant(
        "page-of-another-libc",
        "recovery.c",
        "a lock of another libc is used as if it were this one's",
        (
            "    if (memcmp(found, &expected, sizeof expected) == 0) {",
            "    expected.libc = found->libc;\n    if (memcmp(found, &expected, sizeof expected) == 0) {",
        ),
    ),
    # ---- repair --------------------------------------------------------------------------------
    mutant(
        "salvage-believes-half-a-commit",
        "intact.c",
        "a frame behind a damaged one may end in the middle of its commit",
        (
            "    return !record_at(bytes + at, room - at, seed, offset + at);",
            "    return true;",
        ),
    ),
    mutant(
        "salvage-without-hashes",
        "intact.c",
        "records behind a damaged place are believed unseen",
        (
            "return length <= room && ds__record_valid(seed, offset, record, length);",
            "return length <= room && ds__record_header_valid(seed, offset, record);",
        ),
    ),
    mutant(
        "salvage-needs-headers",
        "salvage.c",
        "a damaged segment header loses the whole segment",
        (
            "ds__find_seed(bytes, size, piece->base, &seed))",
            "ds__find_seed(bytes, size, piece->base, &seed) && false)",
        ),
    ),
    mutant(
        "salvage-beyond-the-end",
        "salvage.c",
        "frames that a recovery dropped come back",
        ("        scan->limit = before_end - base;\n", ""),
    ),
    mutant(
        "repair-reuses-sequences",
        "repair.c",
        "a sequence that was seen before the damage is given out again",
        ("repair->salvage.highest + DS_SEQUENCE_GAP;", "repair->salvage.highest;"),
    ),
    mutant(
        "repair-hides-the-gap",
        "repair.c",
        "who follows the changes is not told that some are gone",
        ("if (status == DS_OK && (!repair->salvage.whole || repair->lost_count > 0))", "if (0)"),
    ),
    mutant(
        "repair-takes-bad-blobs",
        "blob.c",
        "a blob is taken over unseen",
        (
            "        status = ds__blob_map(store, reference, true, &mapping);\n    if (status == DS_OK)\n        ds__mapping_unpin",
            "        status = ds__blob_map(store, reference, false, &mapping);\n    if (status == DS_OK)\n        ds__mapping_unpin",
        ),
    ),
    mutant(
        "moved-blobs-removed",
        "relocation.c",
        "compaction removes large values that are still there",
        (
            "    return doomed || (expired && ds__op_is_blob(plan->op)) ?",
            "    return ds__op_is_blob(plan->op) ?",
        ),
    ),
    mutant(
        "group-never-syncs",
        "keeper.c",
        "a commit of group mode never reaches the disk by itself",
        (
            "        if (group)\n            (void)ds__sync",
            "        if (group && pause == 12345)\n            (void)ds__sync",
        ),
    ),
    mutant(
        "group-opener-does-not-sync",
        "store.c",
        "what a dead process committed is not on disk though an opener promises it",
        (
            "    if (status == DS_OK && store->options.durability != DS_PROCESS)\n",
            "    if (status == DS_OK && store->options.durability == DS_COMMIT)\n",
        ),
    ),
    mutant(
        "blobs-not-synced",
        "sync.c",
        "a synced frame names a large value that is not on disk",
        (
            "    return last_blob != 0 && last_blob >= from;",
            "    return last_blob == 1 && last_blob >= from;",
        ),
    ),
    mutant(
        "blob-name-not-synced",
        "blob.c",
        "a synced large value has no name after a power loss",
        (
            "    return status == DS_OK ? ds__os_directory_sync(&store->directory) : status;\n}\n\nds_status ds__blob_redirty",
            "    return status;\n}\n\nds_status ds__blob_redirty",
        ),
    ),
    mutant(
        "no-redirty-of-the-last-page",
        "sync.c",
        "the last page of such a sync passes for written",
        ("at = from & ~UINT64_C(4095);", "at = from & ~UINT64_C(7);"),
    ),
    mutant(
        "no-redirty",
        "sync.c",
        "pages whose sync a dying process was told had failed pass for written",
        (
            "unknown != 0 ? redirty(store, from, unknown) : DS_OK",
            "unknown == 1 ? redirty(store, from, unknown) : DS_OK",
        ),
    ),
    mutant(
        "read-only-open-sweeps",
        "recovery.c",
        "a read-only open removes the file of a large value that another process is about to commit",
        (
            "status == DS_OK && !store->options.read_only && files->blobs",
            "status == DS_OK && files->blobs",
        ),
    ),
    mutant(
        "keeper-blocks-sigbus",
        "keeper.c",
        "a file that is cut while the keeper reads it kills the process",
        ("        sigdelset(&all, SIGBUS); /* one that is blocked kills (sigbus.h) */\n", ""),
    ),
    mutant(
        "any-file-system-will-do",
        "os_directory.c",
        "a store on a network file system, whose machines see different bytes",
        ("    default:\n        return false;", "    default:\n        return true;"),
    ),
    mutant(
        "compaction-after-a-failed-sync",
        "compaction.c",
        "on a disk that failed once, each try of the keeper makes the log longer, for ever",
        (
            "    ds_status status = ds__sync_refused(store); /* a pass",
            "    ds_status status = DS_OK; /* a pass",
        ),
    ),
    mutant(
        "no-redirty-of-blobs",
        "sync.c",
        "a large value whose sync a dying process was told had failed passes for written",
        ("status == DS_OK ? visit_blobs(store, from, to, ds__blob_redirty) : status;", "status;"),
    ),
    mutant(
        "lost-blob-accepted",
        "rebuild.c",
        "a large value that did not reach the disk is read as zeros after a power loss",
        ("status != DS_OK || lost == UINT64_MAX", "status != DS_OK || lost != 0"),
    ),
    mutant(
        "lost-blob-unhashed",
        "rebuild.c",
        "of a large value that did not reach the disk only the size is looked at",
        (
            "*lost = ds__lane_hash((uint32_t)blob->id, mapping->bytes, blob->size) != blob->hash;",
            "*lost = false;",
        ),
    ),
    mutant(
        "publish-floor-not-durable",
        "recovery.c",
        "a sequence is given out twice after two power losses",
        ("&raised, true);", "&raised, false);"),
    ),
    mutant(
        "floor-believed-unchecked",
        "sync.c",
        "a torn write of the floor is believed",
        (
            "slot.crc == ds__floor_crc(uuid, &slot) && slot.count",
            "slot.crc != 1 && slot.count",
        ),
    ),
    mutant(
        "floor-always-slot-0",
        "sync.c",
        "a torn write of the floor takes the one before along",
        ("slot->count % DS_FLOOR_SLOTS * DS_FLOOR_SPACING", "(uint64_t)0 * DS_FLOOR_SPACING"),
    ),
    mutant(
        "repair-wakes-nobody",
        "writer.c",
        "who waits for what a dead writer committed learns of it a second late",
        ("    ds__wake_all(control);\n    return DS_OK;", "    return DS_OK;"),
    ),
    mutant(
        "wait-tells-the-uncommitted",
        "wait.c",
        "a wait ends with a commit that may be taken back",
        (
            "            status = ds__step_back(store, limit, &found, &gone);\n        if (gone ||",
            "            status = ds__step_back(store, UINT64_MAX, &found, &gone);\n        limit = UINT64_MAX;\n        if (gone ||",
        ),
    ),
    mutant(
        "fence-can-fall",
        "writer.c",
        "a fence that comes late lets a replaced operator write again",
        (
            "    if (atomic_load_explicit(&store->control->fence, memory_order_relaxed) < incarnation)\n",
            "",
        ),
    ),
    mutant(
        "undo-of-large-not-sealed",
        "writer.c",
        "a frame follows long torn bytes",
        ("    else\n        tail->sealed = 1;", ""),
    ),
    mutant(
        "close-while-others-is-clean",
        "store.c",
        "the end of the log is written down while others go on",
        ("    bool clean = alone && (status", "    bool clean = (status"),
    ),
    mutant(
        "step-back-in-circles",
        "read.c",
        "a hostile log holds a reader for ever",
        (
            '        if (previous >= found->offset)\n            return bad_record(store, found->offset, "names a later one as its predecessor");\n',
            "",
        ),
    ),
]

# No bug at all: the tests that notice the others must be content with it.
UNCHANGED = Mutant("unchanged", "nothing", ())

# Which test notices it: a program of tests/c and its arguments, for most the name of one of its tests.
NOTICED_BY: dict[str, str] = {
    "put-waits-for-all-passes": "test_compaction a_put_waits_no_longer_than_until_there_is_room",
    "keeper-before-who-waits": "test_compaction who_has_waited_for_long_goes_first",
    "dead-is-moved": "test_compaction i17_what_changes_while_it_is_to_move_stays_changed",
    "slot-given-up-unseen": "test_compaction i17_what_changes_while_it_is_to_move_stays_changed",
    "segment-for-expiring-records-guessed": "test_compaction an_expiring_put_that_finds_no_segment_is_refused",
    "sequence-accepted-twice": "test_recovery i34_a_sequence_is_not_accepted_twice",
    "later-start-only-if-whole": "test_damage i11_both_ends_may_be_torn",
    "batches-without-a-bound": "test_compaction records_move_in_bounded_batches",
    "segment-of-fewer-commits-followed": "test_recovery i8_what_does_not_follow_is_not_the_logs",
    "lock-stolen": "test_processes i4_a_stopped_writer_blocks_writers_only",
    "sync-error-forgotten": "test_sync i10_a_failed_sync_is_final_for_all",
    "failed-segment-dropped": "test_compaction i19_a_compaction_that_meets_damage_changes_nothing",
    "moves-take-the-reserve": "test_compaction i20_what_does_not_fit_leaves_the_room_to_deletes",
    "moves-take-the-last-room": "test_compaction i20_what_does_not_fit_leaves_the_room_to_deletes",
    "reserve-not-for-what-lives": "test_compaction i20_compaction_has_half_of_the_reserve",
    "reserve-all-for-what-lives": "test_compaction i20_compaction_has_half_of_the_reserve",
    "full-disk-not-tight": "test_compaction i20_the_keeper_compacts_on_a_full_disk",
    "room-not-waited-for": "test_compaction i20_room_that_is_on_its_way_is_waited_for",
    "unused-segment-takes-the-room": "test_compaction i20_a_death_takes_no_reserve",
    "reserve-noted-before-it-goes": "test_compaction i20_a_death_takes_no_reserve",
    "reserve-not-used": "test_compaction i20_deletes_have_the_reserve_and_no_more",
    "descriptor-leaked": "test_faults each_call_site_fails",
    "reserve-made-by-a-reader": "test_open i22_a_read_only_open_reads_and_changes_no_byte",
    "sizes-believed": "test_hostile i27_sizes_are_not_believed",
    "value-not-pinned": "test_store a_value_stays_as_it_was_read",
    "clean-floor-not-durable": "test_sync i7_a_clean_close_says_so_of_what_is_on_disk",
    "clean-floor-before-its-data": "test_sync i7_a_clean_close_says_so_of_what_is_on_disk",
    "covered-sync-hides-the-error": "test_sync i10_a_failed_sync_is_final_for_all",
    "tidy-oldest-first": "test_damage i11_torn_segments_go_newest_first",
    "leftovers-newest-first": "test_damage i11_segments_before_the_start_go_oldest_first",
    "changes-tells-relocations": "test_changes what_compaction_moves_is_no_change",
    "floor-believed-unchecked": "test_damage i13_a_torn_floor_leaves_the_one_before",
    "moved-blobs-removed": "test_store i17_a_large_value_outlives_compactions",
    "group-never-syncs": "test_sync i7_in_group_mode_a_sync_follows_by_itself",
    "group-opener-does-not-sync": "test_sync i7_an_opener_that_promises_syncs_what_the_dead_left",
    "blobs-not-synced": "test_sync i7_a_large_value_is_on_disk_with_its_commit",
    "blob-name-not-synced": "test_sync i7_a_large_value_is_on_disk_with_its_commit",
    "read-only-open-sweeps": "test_damage a_large_value_that_was_never_committed_goes",
    "keeper-blocks-sigbus": "test_sigbus i23_no_thread_blocks_the_signal",
    "any-file-system-will-do": "test_open a_file_system_that_keeps_no_promise_is_refused",
    "compaction-after-a-failed-sync": "test_sync i19_after_a_failed_sync_no_compaction_writes",
    "no-redirty-of-blobs": "test_sync i10_after_a_death_in_a_sync_large_values_are_made_dirty_again",
    "lost-blob-accepted": "test_damage i9_a_commit_goes_with_its_large_value",
    "lost-blob-unhashed": "test_damage i9_a_commit_goes_with_its_large_value",
    "no-redirty-of-the-last-page": "test_sync i10_after_a_death_in_a_sync_the_last_page_is_made_dirty_again",
    "page-made-anew-forgets-failed-sync": "test_sync i10_a_failed_sync_outlives_its_control_page",
    "replaced-blob-swept-before-sync": "test_sync i7_a_replaced_large_value_goes_after_a_sync",
    "half-made-index-in-force": "test_recovery an_index_that_was_half_made_is_not_the_one_in_force",
    "unused-segment-hides-damage": "test_recovery i13_a_segment_that_was_never_used_hides_no_damage",
    "unused-segment-hides-damage-from-repair": "test_recovery i13_a_segment_that_was_never_used_hides_no_damage",
    "first-start-with-a-head": "test_recovery i7_the_last_start_that_was_synced_counts",
    "no-redirty": "test_sync i10_after_a_death_in_a_sync_the_pages_are_made_dirty_again",
    "publish-floor-not-durable": "power_loss 4000 1",
    "floor-always-slot-0": "test_damage i13_a_torn_floor_leaves_the_one_before",
    "repair-wakes-nobody": "test_wait a_repair_while_somebody_sleeps",
    "wait-tells-the-uncommitted": "test_wait what_is_not_committed_ends_no_wait",
    "fence-can-fall": "test_store a_fenced_incarnation_commits_no_more",
    "undo-of-large-not-sealed": "test_damage i1_a_long_torn_frame_is_left_behind",
    "close-while-others-is-clean": "test_damage i34_only_the_last_close_is_clean",
    "step-back-in-circles": "test_damage i28_predecessors_in_a_circle_end",
    "keeper-awaited-in-a-child": "test_processes i5_a_child_closes_a_handle_whose_keeper_waits",
    "blobs-all-swept": "test_damage a_large_value_that_was_never_committed_goes",
    "blob-length-32-bit": "test_large i25_a_value_of_gigabytes_comes_back",
    "standard-streams-taken": "test_regressions no_file_of_a_store_becomes_standard_error",
    "lost-index-stays-lost": "test_damage a_lost_index_is_made_anew",
    "synced-below-the-start": "test_damage a_floor_below_the_start_of_the_log_hurts_nothing",
    "repair-trusts-the-commit-point": "test_hostile i28_words_of_the_control_page_are_not_believed",
    "tail-believed": "test_hostile i28_words_of_the_control_page_are_not_believed",
    "links-followed": "test_files i29_no_open_follows_a_link",
    "links-written-through": "test_files i29_no_open_follows_a_link_to_nowhere",
    "files-of-others-taken": "test_files i29_no_open_takes_a_file_of_somebody_else",
    "page-of-another-libc": "test_files i33_the_page_of_another_libc_is_rebuilt_or_refused",
    "intent-forgotten": "every_store 1 1 /dev/shm 0",
    "intent-before-its-content": "every_store 1 1 /dev/shm 0",
    "word0-first-and-believed": "every_store 1 1 /dev/shm 0",
    "committed-before-the-index": "every_store 1 1 /dev/shm 0",
    "tail-before-committed": "every_store 1 1 /dev/shm 0",
    "intent-cleared-before-the-tail": "every_store 1 1 /dev/shm 0",
    "commit-point-a-frame-late": "test_store a_value_comes_back",
    "crc-of-the-tail-not-kept": "test_store deleting_keys_hides_no_others",
    "sequence-not-advanced": "test_store a_value_comes_back",
    "delete-empties-the-slot": "test_store deleting_keys_hides_no_others",
    "batch-uses-the-first-empty-slot": "test_store a_large_batch_is_one_commit",
    "sealed-tail-ignored": "test_repair what_recovery_dropped_does_not_come_back",
    "hash-before-the-value": "test_store a_value_comes_back",
    "cut-index-believed": "test_sigbus a_slot_that_is_cut_off_is_no_missing_key",
    "cut-value-believed": "test_sigbus i23_what_was_not_cut_is_served",
    "cut-segment-written": "test_sigbus i23_what_was_not_cut_is_served",
    "faults-of-others-swallowed": "test_sigbus a_fault_elsewhere_kills_as_ever",
    "repair-skipped": "every_store 1 1 /dev/shm 0",
    "repair-always-undoes": "every_store 1 1 /dev/shm 0",
    "repair-believes-word0": "every_store 1 1 /dev/shm 0",
    "repair-clears-the-intent-first": "every_store 1 1 /dev/shm 0",
    "finish-forgets-the-index": "every_store 1 1 /dev/shm 0",
    "finish-forgets-the-tail": "every_store 1 1 /dev/shm 0",
    "finish-forgets-the-crc": "every_store 1 1 /dev/shm 0",
    "undo-leaves-torn-bytes": "every_store 6 1 /dev/shm 1",
    "undo-forgets-the-new-segment": "every_store 1 1 /dev/shm 3",
    "no-stepping-back": "test_changes i16_many_keys_are_read_at_one_point",
    "segment-looked-for-once": "test_races a_writer_finds_its_record_while_the_start_moves",
    "old-index-forever": "every_store 1 1 /dev/shm 7",
    "key-compared-by-tag": "test_store a_value_comes_back",
    "keyspace-ignored": "test_store keyspaces_do_not_collide",
    "writer-unmapped-under-its-feet": "test_races a_writer_keeps_mapped_what_it_has_found",
    "record-unchecked-on-read": "bit_flips 1 30 100000",
    "scan-ignores-what-is-shed": "test_races i16_a_scan_misses_no_key_that_is_put_anew",
    "scan-ignores-what-has-expired": "test_expiry a_read_notices_that_an_expired_key_has_left_the_index",
    "clock-after-the-slot": "test_expiry a_key_that_is_renewed_in_time_is_never_missing",
    "clock-and-log-at-two-moments": "test_expiry several_keys_are_seen_at_one_moment",
    "clock-is-the-wall-clock": "test_expiry the_wall_clock_may_jump_meanwhile",
    "clock-starts-with-the-wall-clock": "test_expiry a_reboot_with_an_earlier_wall_clock_goes_on_too",
    "time-that-is-set-counts-as-passed": "test_expiry a_wall_clock_that_is_set_late_kills_nothing",
    "turn-taken-from-its-owner": "test_turn one_has_it_until_it_ends",
    "turn-of-the-dead-lasts": "test_turn it_is_over_by_itself_when_its_owner_is_killed",
    "turn-of-any-length": "test_turn none_is_longer_than_the_limit",
    "turn-ended-by-anybody": "test_turn one_has_it_until_it_ends",
    "turn-ended-in-silence": "test_turn one_sleeps_until_it_is_given_back",
    "turn-never-given-back": "test_turn one_has_it_until_it_ends",
    "turn-waited-for-awake": "test_turn one_sleeps_until_it_is_given_back",
    "turn-looked-at-rarely": "test_turn one_sleeps_until_it_is_given_back",
    "turn-at-any-key": "test_turn one_has_it_until_it_ends",
    "turn-waited-for-by-its-owner": "test_turn one_has_it_until_it_ends",
    "wall-ahead-rounded-up": "test_expiry what_has_expired_stays_so_after_a_reboot",
    "boot-clock-read-after-the-wall-clock": "test_expiry a_stop_between_two_clocks_brings_nothing_back",
    "expiry-not-moved": "test_expiry a_large_value_expires_too",
    "expired-slot-kept": "test_expiry what_is_counted_is_what_is_there",
    "expired-never-reclaimed": "test_expiry i35_compaction_reclaims_what_has_expired",
    "overwritten-expired-not-counted": "test_expiry what_is_counted_is_what_is_there",
    "no-segment-for-expiring-records": "test_expiry only_who_uses_it_needs_a_build_that_knows_it",
    "expiry-believed-unchecked": "test_expiry a_flipped_bit_in_an_expiry_is_found",
    "conditional-put-ignores-expiry": "test_expiry i35_an_expired_key_is_missing_everywhere",
    "search-from-the-last-mapped": "test_races a_reader_that_fell_behind_finds_the_log_again",
    "wake-forgotten": "test_wait a_commit_while_somebody_sleeps",
    "wake-of-prefixes-forgotten": "test_wait a_commit_while_somebody_sleeps",
    "wake-does-not-move-the-word": "test_wait a_commit_between_the_look_and_the_sleep",
    "waiter-looks-before-it-is-seen": "test_wait a_commit_between_the_look_and_the_sleep",
    "spare-replaces-what-is-there": "test_spare its_name_may_be_taken",
    "spare-with-a-header-of-another-size": "test_spare it_becomes_the_next_segment",
    "spare-kept-on-a-full-disk": "test_spare there_is_none_after_the_disk_was_full",
    "spare-far-too-large-is-taken": "test_spare one_that_is_far_too_large_is_given_back",
    "spare-leaks-its-descriptor": "test_spare it_becomes_the_next_segment",
    "any-failure-is-the-disk's": "test_sync a_sync_without_descriptors_can_be_tried_again",
    "large-value-gone-after-damage": "test_sigbus a_large_value_survives_its_index",
    "doomed-before-it-is-dead": "test_compaction i20_a_compaction_that_runs_full_keeps_what_it_does_not_drop",
    "half-a-scan": "test_races i28_a_scan_that_is_always_overtaken_ends",
    "not-seen-to-be-in-use": "test_faults a_store_in_use_is_not_repaired_whatever_fails",
    "record-hash-skipped": "test_repair every_intact_commit_is_kept",
    "frame-crc-skipped": "test_damage i14_frames_of_another_history_are_not_accepted",
    "predecessor-not-in-the-crc": "test_damage i14_frames_of_another_history_are_not_accepted",
    "segment-link-ignores-the-crc": "test_damage i14_segments_of_another_history_are_not_accepted",
    "sequence-instead-of-offset": "test_damage i14_frames_of_another_history_are_not_accepted",
    "tombstone-forgotten": "test_open a_store_survives_a_reboot",
    "first-version-wins": "test_open a_store_survives_a_reboot",
    "floor-ignored": "test_damage a_missing_segment_is_reported",
    "torn-end-not-sealed": "test_repair what_recovery_dropped_does_not_come_back",
    "start-without-its-head": "test_recovery i9_a_start_that_is_told_behind_a_lost_value_is_none",
    "dropped-frames-come-back": "test_damage i9_a_commit_goes_with_its_large_value",
    "unused-segment-ends-the-log": "test_recovery i1_a_segment_that_was_never_used_ends_no_log",
    "moved-frames-beside-an-unused-segment": "test_recovery i1_a_segment_that_was_never_used_ends_no_log",
    "unused-segment-is-torn": "test_recovery i1_a_segment_that_was_never_used_ends_no_log",
    "repair-believes-an-unused-segment": "test_recovery i1_a_segment_that_was_never_used_ends_no_log",
    "dead-bytes-not-counted": "test_damage i14_frames_of_another_history_are_not_accepted",
    "no-sequence-gap": "test_open commits_after_unclean_ends_survive_the_next",
    "version-ignored": "test_damage i24_a_future_format_is_refused",
    "another-boot-is-this-one": "test_damage i6_the_control_page_of_another_boot_blocks_nothing",
    "any-control-page-is-believed": "test_damage i6_the_control_page_of_another_boot_blocks_nothing",
    "index-published-empty": "every_store 1 1 /dev/shm 7",
    "index-growth-loses-a-slot": "every_store 1 1 /dev/shm 7",
    "replaced-index-stays-mapped": "test_store a_replaced_index_is_given_back",
    "compaction-never-overdue": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "compaction-overdue-two-segments-late": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "compaction-overdue-at-four-times": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "overdue-in-vain": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "overdue-overlooked-by-a-try": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "refused-put-asks-nobody": "test_processes a_stopped_compaction_delays_one_put",
    "stopped-compaction-forgotten": "test_processes a_stopped_compaction_delays_one_put",
    "failed-compaction-forgotten": "test_keeper a_compaction_that_failed_is_tried_again",
    "rest-not-used": "test_keeper what_a_burst_left_goes_when_the_writers_rest",
    "rest-not-due-earlier": "test_keeper what_a_burst_left_goes_when_the_writers_rest",
    "compaction-due-two-segments-late": "test_space overwriting_takes_twice_the_live_data_and_four_segments",
    "blob-counted-off-twice": "test_compaction a_large_value_is_counted_off_once",
    "moved-blob-doomed": "test_compaction i19_a_pass_that_was_cut_short_keeps_large_values",
    "compaction-drops-before-the-sync": "power_loss 4000 1",
    "compaction-drops-unread-what-is-named": "test_store compaction_changes_nothing_but_the_room",
    "compaction-forgets-the-last-batch": "test_store compaction_changes_nothing_but_the_room",
    "compaction-without-head": "test_repair every_intact_commit_is_kept",
    "relocation-gets-a-new-sequence": "test_store compaction_changes_nothing_but_the_room",
    "directory-not-synced": "power_loss 4000 1",
    "segments-not-synced": "test_sync i10_a_failed_sync_is_final_for_all",
    "segment-header-not-synced": "power_loss 4000 1",
    "floor-not-raised": "test_open a_store_survives_a_reboot",
    "lock-not-robust": "every_store 1 1 /dev/shm 0",
    "lock-not-made-consistent": "test_processes i4_a_stopped_writer_blocks_writers_only",
    "fork-not-noticed": "test_processes a_forked_handle_refuses_and_the_parent_goes_on",
    "fence-ignored": "test_store a_fenced_incarnation_commits_no_more",
    "expectation-ignored": "test_store a_commit_is_all_or_nothing",
    "first-change-wins": "test_store a_key_named_twice_takes_its_last_change",
    "salvage-believes-half-a-commit": "test_repair half_a_commit_is_not_taken_for_one",
    "salvage-without-hashes": "test_repair every_intact_commit_is_kept",
    "salvage-needs-headers": "test_repair every_intact_commit_is_kept",
    "salvage-beyond-the-end": "test_repair what_recovery_dropped_does_not_come_back",
    "repair-reuses-sequences": "test_repair every_intact_commit_is_kept",
    "repair-hides-the-gap": "test_repair followers_of_a_damaged_store_start_over",
    "repair-takes-bad-blobs": "test_repair a_lost_blob_loses_that_version_only",
}


def apply(chosen: Mutant, target: Path) -> None:
    """Makes `target` the engine's sources with one bug. Untouched files keep their times, so little is built anew."""
    target.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "csrc").rglob("*"):
        copy = target / source.relative_to(ROOT / "csrc")
        if source.is_dir():
            copy.mkdir(exist_ok=True)
            continue
        text = source.read_bytes()
        text = edited(chosen, str(source.relative_to(ROOT / "csrc")), text.decode()).encode()
        if not copy.exists() or copy.read_bytes() != text:
            copy.write_bytes(text)


def edited(chosen: Mutant, file: str, text: str) -> str:
    for name, old, new in chosen.edits:
        if name != file:
            continue
        if text.count(old) != 1:
            sys.exit(
                f"mutants.py: {chosen.name}: {text.count(old)} times in {file}, not once:\n{old}"
            )
        text = text.replace(old, new)
    return text


def check(chosen: list[Mutant]) -> None:
    for m in chosen:
        for file in {file for file, _, _ in m.edits}:
            edited(m, file, (ROOT / "csrc" / file).read_text())


def first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith("FAIL")]
    spoken = [line for line in lines if ": " in line and not line.startswith("FAIL")]
    return " ".join((spoken or failed or lines or ["no output"])[0].split())


@dataclass
class Verdict:
    mutant: Mutant
    test: str | None  # that noticed
    said: str
    seconds: float


class Bench:
    """A build directory, and a mutant after the other in it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.build = BUILD / str(number)
        self.running: subprocess.Popen[str] | None = None

    def command(self, *words: str | Path, limit: float | None = None) -> tuple[int, str]:
        """Exit code and output. At the limit it is ended, with all its children."""
        self.running = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = self.running.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            return -1, f"still running after {limit:.0f} s"
        return self.running.returncode, output

    def end(self) -> None:
        if self.running and self.running.returncode is None:
            os.killpg(self.running.pid, signal.SIGKILL)
            self.running.communicate()

    def make(self, chosen: Mutant, *command: str | Path) -> None:
        code, output = self.command(*command)
        if code:
            raise RuntimeError(f"{chosen.name} does not build:\n{output[-3000:]}")

    def configure(self, chosen: Mutant) -> None:
        # -O1 builds fastest: most of the time goes into compiling.
        words = ["cmake", "-S", ROOT, "-B", self.build, f"-DDORA_STATE_MUTANT={chosen.name}"]
        words += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-O1"]
        words += ["-DDORA_STATE_PYTHON=OFF", "-DDORA_STATE_TESTS=ON"]
        if shutil.which("ninja") and not (self.build / "CMakeCache.txt").exists():
            words += ["-G", "Ninja"]
        self.make(chosen, *words)

    def notices(self, chosen: Mutant, test: str) -> tuple[str, str] | None:
        """The test, by the name of the case that failed, and what it says; None if it is content."""
        program, *arguments = test.split()
        self.make(chosen, "cmake", "--build", self.build, "--target", program)
        folder = self.build / "tests" / "c"
        if program in FAULTY:
            folder /= "faults"
        code, output = self.command(folder / program, *arguments, limit=TEST_LIMIT_S)
        if code == 0:
            return None
        failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAIL ")]
        single = not arguments and failed and failed[0] != program
        return (f"{program} {failed[0]}" if single else test), first_line(output)

    def judge_unchanged(self) -> None:
        self.configure(UNCHANGED)
        for test in dict.fromkeys(NOTICED_BY.values()):
            noticed = self.notices(UNCHANGED, test)
            if noticed:
                raise RuntimeError(f"{test} fails without a mutant: {noticed[1]}")

    def judge(self, chosen: Mutant, expected: str | None) -> Verdict:
        start = time.monotonic()
        self.configure(chosen)
        for test in [expected] * bool(expected) + TESTS:
            noticed = self.notices(chosen, test)
            if noticed:
                return Verdict(chosen, *noticed, time.monotonic() - start)
        return Verdict(chosen, None, "", time.monotonic() - start)


def judge_all(chosen: list[Mutant], find: bool) -> list[Verdict]:
    """All of them, each worker taking the next; the slow ones are begun first as they stand in NOTICED_BY."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    slow = ("every_store", "linearizability", "power_loss", "bit_flips", "kill_sweep")
    for m in sorted(chosen, key=lambda m: not NOTICED_BY.get(m.name, slow[0]).startswith(slow)):
        waiting.put(m)
    verdicts: list[Verdict] = []
    problems: list[BaseException] = []

    def work(bench: Bench) -> None:
        try:
            if bench.number == 0 and not find:
                bench.judge_unchanged()
            while not problems:
                m = waiting.get_nowait()
                verdict = bench.judge(m, None if find else NOTICED_BY.get(m.name))
                verdicts.append(verdict)
                print_row(verdict)
        except queue.Empty:
            pass
        except BaseException as problem:
            problems.append(problem)

    benches = [Bench(number) for number in range(WORKERS)]
    threads = [threading.Thread(target=work, args=[bench]) for bench in benches]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        problems.append(KeyboardInterrupt())
        for bench in benches:
            bench.end()
        raise
    if problems:
        sys.exit(f"mutants.py: {problems[0]}")
    return verdicts


def print_row(verdict: Verdict) -> None:
    said = verdict.said.replace("|", "/")[:110]
    test = verdict.test or "**nothing**"
    print(
        f"| {verdict.mutant.name} | {verdict.mutant.breaks} | {test} | {said} | {verdict.seconds:.1f} |",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Is every seeded bug noticed by a test?")
    parser.add_argument("names", nargs="*", help="mutants; none: all")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true", help="do all edits fit?")
    parser.add_argument("--find", action="store_true", help="try all tests, print NOTICED_BY")
    parser.add_argument("--apply", metavar="DIRECTORY", type=Path)
    options = parser.parse_args()
    known = {m.name: m for m in [*MUTANTS, UNCHANGED]}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}; see --list")
    chosen = [known[name] for name in options.names] or MUTANTS
    if options.list:
        for m in chosen:
            print(f"{m.name:36} {m.edits[0][0]:14} {m.breaks}")
        return 0
    if options.apply:
        apply(chosen[0], options.apply)
        return 0
    check(chosen)
    if options.check:
        print(f"{len(chosen)} mutants fit")
        return 0
    start = time.monotonic()
    survivors = run(chosen, options.find)
    print(f"\n{summary(len(chosen), survivors)}, {time.monotonic() - start:.1f} s")
    return 1 if survivors else 0


def run(chosen: list[Mutant] = MUTANTS, find: bool = False) -> list[str]:
    """Prints the table of these; the names of those that nothing noticed."""
    check(chosen)
    print(
        "| mutant | what it breaks | noticed by | what that says | s |\n| --- | --- | --- | --- | --- |"
    )
    verdicts = judge_all(chosen, find)
    if find:
        for verdict in sorted(verdicts, key=lambda v: MUTANTS.index(v.mutant)):
            print(f'    "{verdict.mutant.name}": "{verdict.test}",')
    survivors = [verdict.mutant.name for verdict in verdicts if verdict.test is None]
    for name in survivors:
        print(f"survives: {name}", file=sys.stderr)
    return survivors


def summary(mutants: int, survivors: list[str]) -> str:
    return f"{mutants} seeded bugs, {mutants - len(survivors)} noticed"


if __name__ == "__main__":
    sys.exit(main())
