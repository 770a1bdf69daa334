/** Checks common to all file parsers. */
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { expect } from '../campaign';

/** A longer message repeats the file instead of describing the error. */
const MAX_MESSAGE = 2000;

/**
 * Returns the result of `parse`, or null if it refused `file` correctly, with a typed error that names
 * the file. Rethrows any other error.
 */
export function accepted<T>(file: string, parse: () => T): T | null {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof CheckpointError || error instanceof UnsupportedModelError)) throw error;
    expect(error.file === file, () => `the error names ${error.file}, not ${file}`);
    expect(
      error.message.startsWith(`${file}: `) && error.message.length > file.length + 8,
      () => `the error says nothing: ${error.message}`,
    );
    expect(error.message.length < MAX_MESSAGE, () => `a message of ${error.message.length}`);
    return null;
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
