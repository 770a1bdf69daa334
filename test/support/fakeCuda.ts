/**
 * Stand-ins for NVIDIA's libraries and for the CUDA backend, built with the C++ compiler, and a copy of
 * the package beside which a backend of ours can lie. Programs that use them run in processes of their
 * own, because the loader reads LD_LIBRARY_PATH once.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const ROOT = path.resolve(__dirname, '..', '..');

/** libcuda.so.1. The variables FAKE_GPU_* say what it shows; the defaults are those of an H200. */
const DRIVER = String.raw`
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
static int of(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atoi(value) : otherwise;
}
extern "C" {
// With FAKE_GPU_WAIT, starts only when that file is gone.
int cuInit(unsigned) {
  const char* file = std::getenv("FAKE_GPU_WAIT");
  for (int i = 0; file && access(file, F_OK) == 0; ++i) {
    if (i == 3000) std::fputs("the file is still there after 30 s\n", stderr), std::exit(1);
    usleep(10000);
  }
  return of("FAKE_GPU_INIT", 0);
}
int cuDriverGetVersion(int* version) { *version = of("FAKE_GPU_DRIVER", 13000); return 0; }
int cuDeviceGetCount(int* count) { *count = of("FAKE_GPU_COUNT", 1); return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int) { std::snprintf(name, size, "NVIDIA H200"); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = 150ull << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const int capability = of(device == 0 ? "FAKE_GPU_CAPABILITY" : "FAKE_GPU_CAPABILITY_1", 90);
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
  return 0;
}
int cuDeviceCanAccessPeer(int* can, int, int) { *can = of("FAKE_GPU_PEER", 1); return 0; }
int cuGetErrorName(int result, const char** name) {
  *name = result == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : nullptr;
  return 0;
}
}`;

const cublasLt = (version: number) =>
  `extern "C" unsigned long cublasLtGetVersion() { return ${version}; }`;

const NCCL = 'extern "C" int ncclGetVersion(int* version) { *version = 22803; return 0; }';

/** A backend that says which cuBLASLt it is linked with, by the error of opening a device. */
const BACKEND = String.raw`
#include "base/error.h"
extern "C" {
unsigned long cublasLtGetVersion();
extern const int uniprocCudaRuntimeVersion = 13000;
extern const char uniprocCudaArchitectures[] = "80, 90a-real";
void* uniprocMakeCudaOps(int) {
  throw uniproc::Error("DEVICE_FAILED",
                       "the stand-in has cuBLASLt " + std::to_string(cublasLtGetVersion()));
}
}`;

export interface Outcome {
  status: number | null;
  stdout: string;
  stderr: string;
}

export interface CodedError {
  name: string;
  code: string;
  message: string;
}

export class FakeCuda {
  readonly folder = mkdtempSync(path.join(tmpdir(), 'uniproc-cuda-'));
  /** The package's folder, with the addon in build/Release and no backend. */
  readonly package = path.join(this.folder, 'package');
  /** Folders with one library each. */
  readonly driver = this.#build('driver', 'libcuda.so.1', DRIVER);
  /** The one that the backend requires; of a version that no machine has. */
  readonly cublasLt = this.#build('cublas', 'libcublasLt.so.98', cublasLt(980102));
  readonly cublasLt12 = this.#build('cublas12', 'libcublasLt.so.12', cublasLt(120804));
  readonly nccl = this.#build('nccl', 'libnccl.so.2', NCCL);
  /** The content of a backend that can be loaded. */
  readonly usableBackend = readFileSync(
    path.join(
      this.#build('backend', 'uniproc_cuda.so', BACKEND, [
        '-std=c++20',
        `-I${path.join(ROOT, 'native')}`,
        `-L${this.cublasLt}`,
        '-l:libcublasLt.so.98',
      ]),
      'uniproc_cuda.so',
    ),
  );

  constructor() {
    for (const name of ['dist', 'package.json']) {
      cpSync(path.join(ROOT, name), path.join(this.package, name), { recursive: true });
    }
    for (const name of ['models', 'node_modules']) {
      symlinkSync(path.join(ROOT, name), path.join(this.package, name));
    }
    mkdirSync(this.#release, { recursive: true });
    cpSync(path.join(ROOT, 'build', 'Release', 'uniproc.node'), this.addon);
  }

  get #release(): string {
    return path.join(this.package, 'build', 'Release');
  }

  get addon(): string {
    return path.join(this.#release, 'uniproc.node');
  }

  get backend(): string {
    return path.join(this.#release, 'uniproc_cuda.so');
  }

  #build(name: string, file: string, source: string, options: string[] = []): string {
    const folder = path.join(this.folder, name);
    mkdirSync(folder, { recursive: true });
    const program = path.join(folder, 'source.cpp');
    writeFileSync(program, source);
    execFileSync(process.env.CXX ?? 'g++', [
      // As the addon is built: an exception of the backend's crosses into it.
      ...(process.env.CXXFLAGS ?? '').split(' ').filter(Boolean),
      ...['-shared', '-fPIC', '-o', path.join(folder, file), `-Wl,-soname,${file}`, program],
      ...options,
    ]);
    return folder;
  }

  /** Puts a file with this content beside the addon; null: no backend. */
  putBackend(content: string | Buffer | null): void {
    rmSync(this.backend, { force: true });
    if (content !== null) writeFileSync(this.backend, content);
  }

  /** A folder with the library of another, below the folder of this. */
  put(library: string, ...place: string[]): string {
    const folder = path.join(this.folder, ...place);
    cpSync(library, folder, { recursive: true });
    return folder;
  }

  /**
   * Installs a copy of the package in an application, with the addon in a platform package below it, as
   * npm places one that is of another version than the application's own. Returns both.
   */
  install(): { folder: string; addon: string } {
    const folder = path.join(this.folder, 'app', 'node_modules', 'uniproc');
    for (const name of ['dist', 'package.json']) {
      cpSync(path.join(ROOT, name), path.join(folder, name), { recursive: true });
    }
    symlinkSync(path.join(ROOT, 'models'), path.join(folder, 'models'));
    symlinkSync(path.join(ROOT, 'node_modules'), path.join(this.folder, 'node_modules'));
    const platform = `@uniproc/${process.platform}-${process.arch}`;
    const addon = path.join(folder, 'node_modules', platform, 'uniproc.node');
    cpSync(this.addon, addon);
    return { folder, addon };
  }

  /** Runs node with the package's folder as the working directory, and no variable of CUDA's or Python's. */
  run(args: string[], env: Record<string, string> = {}, cwd = this.package): Outcome {
    const { status, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd,
      encoding: 'utf8',
      env: { PATH: path.join(this.folder, 'nothing'), HOME: this.folder, ...env },
    });
    return { status, stdout, stderr };
  }

  /** The error of opening a CUDA device, as devices 'cuda' and 'cuda:N' do; `LD_LIBRARY_PATH` has the folders. */
  errorOfGpu(folders: string[], env: Record<string, string> = {}, index = 0): CodedError {
    const script = `
      require('./dist/native').openGpu(${index}).then(({ constructor: { name }, code, message }) => {
        console.log(JSON.stringify({ name, code, message }));
      });`;
    const outcome = this.run(['-e', script], { LD_LIBRARY_PATH: folders.join(':'), ...env });
    expect(outcome).toMatchObject({ status: 0, stderr: '' });
    return JSON.parse(outcome.stdout) as CodedError;
  }

  /** A folder whose libcuda.so.1 cannot be loaded, so that the machine's own is not found either. */
  noDriver(): string {
    const folder = path.join(this.folder, 'no-driver');
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, 'libcuda.so.1'), '');
    return folder;
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
