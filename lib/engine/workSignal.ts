/** Where the engine's loop waits for work, and others wait for the loop to have none. */
export class WorkSignal {
  /** Resolves the loop's wait; null while it works. */
  private wakeLoop: (() => void) | null = null;
  private idleListeners: (() => void)[] = [];

  /** The loop waits here; keeps no process alive. */
  async wait(): Promise<void> {
    const woken = new Promise<void>((resolve) => (this.wakeLoop = resolve));
    this.tellIdle();
    await woken;
    this.wakeLoop = null;
  }

  wake(): void {
    this.wakeLoop?.();
  }

  /** Resolves once the loop waits or has ended; null if it waits. */
  idle(): Promise<void> | null {
    if (this.wakeLoop !== null) return null;
    return new Promise((resolve) => this.idleListeners.push(resolve));
  }

  /** The loop waits, or has ended. */
  tellIdle(): void {
    const listeners = this.idleListeners;
    this.idleListeners = [];
    for (const resolve of listeners) resolve();
  }
}
