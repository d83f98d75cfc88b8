// The theme chosen last time, set before the first paint. No module, for those run later.
try {
  const theme = localStorage.getItem("trimtab.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // storage is off: the system's theme
}
