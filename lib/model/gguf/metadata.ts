/** Typed access to a GGUF file's metadata. */
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { Metadata, MetadataValue } from './header';

export class MetadataReader {
  private readonly asked = new Set<string>();

  constructor(
    readonly file: string,
    readonly metadata: Metadata,
  ) {}

  has(key: string): boolean {
    return this.metadata.has(key);
  }

  /** Whether the functions below have been asked for the key. */
  wasAsked(key: string): boolean {
    return this.asked.has(key);
  }

  fail(key: string, must: string): CheckpointError {
    const value = this.metadata.get(key);
    const found = value === undefined ? 'missing' : show(value);
    return new CheckpointError(this.file, `metadata ${show(key)} is ${found}; it must be ${must}`);
  }

  /** A number; undefined if the key is missing. */
  number(key: string): number | undefined {
    return this.typed(key, 'number', 'a number');
  }

  text(key: string): string | undefined {
    return this.typed(key, 'string', 'a string');
  }

  flag(key: string): boolean | undefined {
    return this.typed(key, 'boolean', 'true or false');
  }

  requiredNumber(key: string): number {
    const value = this.number(key);
    if (value === undefined) throw this.fail(key, 'a number');
    return value;
  }

  requiredText(key: string): string {
    const value = this.text(key);
    if (value === undefined) throw this.fail(key, 'a string');
    return value;
  }

  /** A number for all layers, which the file may hold as a list of one for each. */
  numberOfLayers(key: string): number | undefined {
    const value: MetadataValue | undefined = this.metadata.get(key);
    if (!Array.isArray(value)) return this.number(key);
    this.asked.add(key);
    const [first] = value as unknown[];
    if (typeof first === 'number' && value.every((each) => each === first)) return first;
    throw this.fail(key, 'one number for all layers');
  }

  /**
   * Whether each layer is of a kind, by a list, or by a period whose last layer is not; undefined if the
   * key is missing.
   */
  layersOf(key: string, numLayers: number): boolean[] | undefined {
    const value: MetadataValue | undefined = this.metadata.get(key);
    if (Array.isArray(value)) {
      this.asked.add(key);
      const flags = value as unknown[];
      const isList = flags.every((each): each is boolean => typeof each === 'boolean');
      if (isList && flags.length === numLayers) return flags;
      throw this.fail(key, `a list of ${numLayers} times true or false`);
    }
    const period = this.count(key);
    if (period === undefined) return undefined;
    return Array.from({ length: numLayers }, (_, layer) => layer % period < period - 1);
  }

  /** A number of things, from 1, the same for all layers. */
  count(key: string): number | undefined {
    const value = this.numberOfLayers(key);
    if (value === undefined || (Number.isInteger(value) && value >= 1)) return value;
    throw this.fail(key, 'an integer from 1');
  }

  requiredCount(key: string): number {
    const value = this.count(key);
    if (value === undefined) throw this.fail(key, 'an integer from 1');
    return value;
  }

  /** A number above 0. */
  positive(key: string): number | undefined {
    const value = this.number(key);
    if (value === undefined || (value > 0 && Number.isFinite(value))) return value;
    throw this.fail(key, 'a number above 0');
  }

  private typed<T extends 'number' | 'string' | 'boolean'>(
    key: string,
    type: T,
    must: string,
  ): { number: number; string: string; boolean: boolean }[T] | undefined {
    this.asked.add(key);
    const value = this.metadata.get(key);
    if (value === undefined) return undefined;
    if (typeof value !== type) throw this.fail(key, must);
    return value as unknown as { number: number; string: string; boolean: boolean }[T];
  }
}
