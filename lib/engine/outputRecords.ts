/** The records in which the scheduler says what a step brought. */
import type { EngineCoreOutput } from './outputs';

/** Written again by each step, so that a token does not cost an object. */
export class OutputRecords {
  readonly records: EngineCoreOutput[] = [];

  /** The record `index`, made when there is none yet; records are taken in order. */
  at(index: number): EngineCoreOutput {
    if (index === this.records.length) {
      this.records.push({
        requestId: '',
        start: 0,
        end: 0,
        promptLogprobs: null,
        finishReason: null,
        error: null,
      });
    }
    return this.records[index];
  }
}
