module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  testPathIgnorePatterns: ['<rootDir>/test/gpu/'],
  transform: { '^.+\\.ts$': ['ts-jest', { tsconfig: 'tsconfig.json', diagnostics: false }] },
  // Otherwise each use of Math goes through jest's global object: 600 ns, in loops of references.
  sandboxInjectedGlobals: ['Math'],
  // Only ends what hangs: a machine that others load may need many times what an idle one does.
  testTimeout: 300000,
  // A worker is told to have leaked handles if it has not ended by then. ThreadSanitizer alone sleeps
  // for a second at the end of a process, and a loaded machine takes a second to free one's memory.
  workerGracefulExitTimeout: 30000,
};
