// Numbers and times as text, the same in every browser: English separators, and UTC.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimal = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const formatCount = (count) => whole.format(count);

export const formatValue = (value) => (value === null || value === undefined ? "–" : decimal.format(value));

// The time of day of a time in milliseconds: 13:05, 13:05:09 or 13:05:09.250.
const timeOfDay = (ms, length) => new Date(ms).toISOString().slice(11, 11 + length);
export const formatMinutes = (ms) => timeOfDay(ms, 5);
export const formatSeconds = (ms) => timeOfDay(ms, 8);
export const formatMilliseconds = (ms) => timeOfDay(ms, 12);
