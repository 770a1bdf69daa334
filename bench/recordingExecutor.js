'use strict';

const { ExecutorWithExternalLauncher, UniProcExecutor } = require('..');

/**
 * An executor that calls `onStep`, if set, with each step's schedule as soon as its tokens are
 * available.
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
/** The same for one of several ranks. */
const RecordingRank = recording(ExecutorWithExternalLauncher);

module.exports = { RecordingExecutor, RecordingRank };
