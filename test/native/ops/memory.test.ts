import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { OutOfMemoryError } from '../../../lib/errors';
import { cpuOps, hostMemory } from './binding';

const MiB = 2 ** 20;
const GiB = 2 ** 30;

describe('memory', () => {
  it('reports current and peak allocation', () => {
    const ops = cpuOps();
    expect(ops.memory()).toMatchObject({ allocated: 0, peakAllocated: 0 });
    const small = ops.allocate(25, 'float32', 'a vector');
    const large = ops.allocate(3 * MiB, 'bfloat16', 'a matrix');
    expect(ops.memory().allocated).toBe(100 + 6 * MiB);
    ops.release(large);
    ops.release(ops.allocate(25, 'float32', 'a vector'));
    expect(ops.memory()).toMatchObject({ allocated: 100, peakAllocated: 100 + 6 * MiB });
    ops.resetPeakMemory();
    expect(ops.memory().peakAllocated).toBe(100);
    ops.release(small);
    expect(ops.memory()).toMatchObject({ allocated: 0, peakAllocated: 100 });
  });

  it('is zeroed, also if it is reused', () => {
    const ops = cpuOps();
    for (const count of [1, 1000, 2 * MiB]) {
      const before = ops.allocate(count, 'int32', 'a test');
      ops.copyToDevice(before, new Int32Array(count).fill(-1));
      ops.release(before);
      expect(ops.readInts(ops.allocate(count, 'int32', 'a test'), count).some(Boolean)).toBe(false);
    }
  });

  it('is not resident before it is written', () => {
    const ops = cpuOps();
    const residentBytes = () =>
      Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096;
    const before = residentBytes();
    const cache = ops.allocate(GiB / 4, 'float32', 'the KV cache');
    expect(residentBytes() - before).toBeLessThan(64 * MiB);
    ops.release(cache);
  });

  it('is refused with its purpose and sizes if too little is available', () => {
    const ops = cpuOps();
    const kept = ops.allocate(2 * MiB, 'float32', 'the weights');
    const { total } = ops.memory();
    const ask = (bytes: number) => () => ops.allocate(bytes / 4, 'float32', 'the KV cache');
    expect(ask(2 ** 50)).toThrow(OutOfMemoryError);
    expect(ask(2 ** 50)).toThrow(
      /the KV cache: 1125899906842624 bytes \(1048576\.00 GiB\) .* free of .* 0\.01 GiB of it used/,
    );
    // Earlier allocations count although they are not resident yet.
    const most = ops.memory().free - (ops.memory().free % 4096);
    const promised = ops.allocate((most * 0.75) / 4, 'float32', 'a large cache');
    expect(ask(total / 2)).toThrow(OutOfMemoryError);
    expect(ops.memory().allocated).toBe(8 * MiB + most * 0.75);
    ops.release(promised);
    ops.release(kept);
  });
});

describe('the memory of the host', () => {
  let root: string;
  beforeEach(() => (root = mkdtempSync(path.join(os.tmpdir(), 'uniproc-host-'))));
  afterEach(() => rmSync(root, { recursive: true }));

  const write = (file: string, text: string) => {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    writeFileSync(path.join(root, file), text);
  };
  const machine = () =>
    write(
      'proc/meminfo',
      'MemTotal:       67108864 kB\nMemFree:  1048576 kB\nMemAvailable:   33554432 kB\n',
    );

  it("is the machine's without a cgroup limit", () => {
    machine();
    expect(hostMemory(root)).toEqual({ total: 64 * GiB, free: 32 * GiB });
    write('proc/self/cgroup', '0::/user\n');
    write('sys/fs/cgroup/user/memory.max', 'max\n');
    expect(hostMemory(root)).toEqual({ total: 64 * GiB, free: 32 * GiB });
  });

  it('is the limit of a version 2 cgroup minus its unreclaimable usage', () => {
    machine();
    write('proc/self/cgroup', '0::/pods/one\n');
    write('sys/fs/cgroup/pods/one/memory.max', `${8 * GiB}\n`);
    write('sys/fs/cgroup/pods/one/memory.current', `${5 * GiB}\n`);
    const stat = `anon 1\ninactive_file ${2 * GiB}\nactive_file ${GiB}\n`;
    write('sys/fs/cgroup/pods/one/memory.stat', stat);
    expect(hostMemory(root)).toEqual({ total: 8 * GiB, free: 6 * GiB });
    // The parent cgroup may have a lower limit.
    write('sys/fs/cgroup/pods/memory.max', `${4 * GiB}\n`);
    write('sys/fs/cgroup/pods/memory.current', `${3 * GiB}\n`);
    expect(hostMemory(root)).toEqual({ total: 4 * GiB, free: GiB });
  });

  it('is the limit of a version 1 cgroup', () => {
    machine();
    write('proc/self/cgroup', '5:cpu,cpuacct:/x\n4:memory:/pods/one\n0::/\n');
    write('sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes', `${8 * GiB}\n`);
    write('sys/fs/cgroup/memory/pods/one/memory.usage_in_bytes', `${5 * GiB}\n`);
    write('sys/fs/cgroup/memory/pods/one/memory.stat', `total_inactive_file ${2 * GiB}\n`);
    // Version 1 writes "no limit" as a very large number.
    write('sys/fs/cgroup/memory/memory.limit_in_bytes', '9223372036854771712\n');
    expect(hostMemory(root)).toEqual({ total: 8 * GiB, free: 5 * GiB });
  });

  it('is the limit of the container, which sees its cgroup as the root', () => {
    machine();
    write('proc/self/cgroup', '0::/kubepods/pod1/abc\n');
    write('sys/fs/cgroup/memory.max', `${2 * GiB}\n`);
    write('sys/fs/cgroup/memory.current', `${3 * GiB}\n`);
    expect(hostMemory(root)).toEqual({ total: 2 * GiB, free: 0 });
  });
});

describe('the number of threads', () => {
  it('is the requested one, or the number of cores', () => {
    expect(cpuOps(undefined, 3).properties().numThreads).toBe(3);
    expect(cpuOps(undefined, 0).properties().numThreads).toBe(Number(execFileSync('nproc')));
  });
});

describe('the instruction set', () => {
  it('is the requested one, or the fastest supported', () => {
    expect(cpuOps('plain').properties()).toMatchObject({ name: 'cpu', capability: 'plain' });
    expect(['plain', 'avx2', 'avx512', 'avx512bf16']).toContain(cpuOps().properties().capability);
    expect(() => cpuOps('sse9' as 'plain')).toThrow(
      /does not support the instruction set 'sse9'; supported: .*plain/,
    );
  });
});
