/** What all parsers of files promise. */
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { expect } from '../campaign';

/** Longer, and the message repeats the file instead of saying what is wrong with it. */
const MAX_MESSAGE = 2000;

/**
 * What `parse` gives; null when it refused `file` as it should: with an error that names the file and
 * says something. Another error is thrown on.
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
