'use strict';

const { ExecutorWithExternalLauncher, UniProcExecutor } = require('..');

/**
 * An executor that tells `onStep`, when it is set, what each step computed, as soon as its tokens
 * are there.
 */
const recording = (Executor) =>
  class extends Executor {
    onStep = null;

    executeModel(schedulerOutput, options) {
      const future = super.executeModel(schedulerOutput, options);
      if (schedulerOutput.totalNumScheduledTokens > 0) {
        future.addDoneCallback(() => this.onStep?.(schedulerOutput));
      }
      return future;
    }
  };

const RecordingExecutor = recording(UniProcExecutor);
/** Of one rank of several. */
const RecordingRank = recording(ExecutorWithExternalLauncher);

module.exports = { RecordingExecutor, RecordingRank };
