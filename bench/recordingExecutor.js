'use strict';

const { UniProcExecutor } = require('..');

/** Tells `onStep`, when it is set, what each step computed, as soon as its tokens are there. */
class RecordingExecutor extends UniProcExecutor {
  onStep = null;

  executeModel(schedulerOutput, options) {
    const future = super.executeModel(schedulerOutput, options);
    if (schedulerOutput.totalNumScheduledTokens > 0) {
      future.addDoneCallback(() => this.onStep?.(schedulerOutput));
    }
    return future;
  }
}

module.exports = { RecordingExecutor };
